"""Completing futures runs code of others: callbacks, unpickling, signal handlers. Nobody is held up by it."""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import shmipc
from tests.actors import Actor, Echo, in_threads


class Gated(Actor):
    """Answers when it is told to."""

    def echo_after(self, value: Any) -> Any:
        shmipc.receive(tag=1)
        return value

    def echo(self, value: Any) -> Any:
        return value


class AsksOnArrival:
    """A result that calls an actor when it is unpickled, as a Ref of an unknown class does."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.answer = self.ref.echo.submit(5).result(60)


class Maker(Actor):
    def make(self, ref: Any) -> AsksOnArrival:
        return AsksOnArrival(ref)


def open_gate(ref: Any) -> None:
    shmipc.send(ref, None, tag=1)


async def awaited(future: Any) -> Any:
    return await asyncio.wait_for(future, 60)


def test_callback_may_ask_for_results_while_others_await(system: shmipc.System) -> None:
    gated, echo = system.spawn(Gated), system.spawn(Echo)
    found: list[Any] = []
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def ask(_: Any) -> None:
        begun.set()
        found.append(echo.echo.submit(2).result(60))
        go_on.wait(60)
        found.append(echo.echo.submit(3).result(60))
        over.set()

    future = gated.echo_after.submit(1)
    future.add_done_callback(ask)
    open_gate(gated)
    assert begun.wait(60)
    assert echo.echo.submit(4).result(60) == 4, "a thread that waits itself"
    go_on.set()
    assert asyncio.run(awaited(echo.echo.submit(5))) == 5
    assert over.wait(60)
    assert found == [2, 3]


def test_results_may_ask_for_results_when_they_are_unpickled(system: shmipc.System) -> None:
    maker, echo = system.spawn(Maker), system.spawn(Echo)
    futures = [maker.make.submit(echo) for _ in range(200)]
    maker.pid()
    assert [future.result(60).answer for future in futures] == [5] * 200
    assert asyncio.run(awaited(maker.make.submit(echo))).answer == 5
    found = in_threads([lambda: maker.make.submit(echo).result(60).answer for _ in range(8)])
    assert found == [5] * 8


def test_many_callbacks_that_ask_do_not_stack_up_and_none_is_lost(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)
    found: list[int] = []
    full = threading.Event()

    def ask(future: Any) -> None:
        found.append(echo.echo.submit(future.result()).result(60))
        if len(found) == 300:
            full.set()

    futures = [echo.echo.submit(number) for number in range(300)]
    for future in futures:
        future.add_done_callback(ask)
    assert full.wait(60), len(found)
    assert sorted(found) == list(range(300))


class AsksForItself:
    def __setstate__(self, state: dict[str, Any]) -> None:
        waited_for[0].result(60)

    def __getstate__(self) -> dict[str, Any]:
        return {"some": 1}


waited_for: list[Any] = []


class Vain(Actor):
    def make(self) -> AsksForItself:
        return AsksForItself()


def test_result_that_asks_for_itself_is_refused(system: shmipc.System) -> None:
    vain: Any = system.spawn(Vain)
    waited_for[:] = [vain.make.submit()]
    with pytest.raises(shmipc.Deadlock):
        waited_for[0].result(60)
    waited_for.clear()


@contextmanager
def handled(number: int, handler: Callable[..., Any]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_signal_handler_may_ask_for_a_result_inside_a_wait_for_one(system: shmipc.System) -> None:
    gated, echo = system.spawn(Gated), system.spawn(Echo)
    found: list[Any] = []
    main = threading.main_thread().ident
    waits, over = threading.Event(), threading.Event()

    def handle(*_: Any) -> None:
        found.append(echo.echo.submit(2).result(60))
        waits.set()
        over.wait(60)  # another thread's result comes meanwhile
        found.append(echo.echo.submit(3).result(60))

    def disturb() -> None:
        assert main is not None
        signal.pthread_kill(main, signal.SIGUSR1)
        waits.wait(60)
        found.append(echo.echo.submit("other").result(60))
        over.set()
        open_gate(gated)

    with handled(signal.SIGUSR1, handle):
        future = gated.echo_after.submit(1)
        thread = threading.Thread(target=disturb)
        thread.start()
        assert future.result(60) == 1
        thread.join()
    assert found == [2, "other", 3]


class Slow:
    """A result that takes long to unpickle: until it is interrupted."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            pass

    def __getstate__(self) -> dict[str, Any]:
        return {"some": 1}


class Sluggard(Actor):
    def slow(self) -> Slow:
        return Slow()


def test_interrupt_while_another_result_is_read_reaches_the_main_thread(system: shmipc.System) -> None:
    sluggard: Any = system.spawn(Sluggard)
    read, wanted = sluggard.slow.submit(), sluggard.pid.submit()
    sluggard.pid()  # both are answered
    with handled(signal.SIGINT, signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        wanted.result(60)
    assert wanted.result(60) == shmipc.process(sluggard).pid
    error = read.exception(60)
    assert isinstance(error, shmipc.Aborted)
    assert "KeyboardInterrupt" in str(error)


def test_callback_that_exits_does_not_end_the_completions(system: shmipc.System, caplog: Any) -> None:
    gated, echo = system.spawn(Gated), system.spawn(Gated)
    first, second = gated.echo_after.submit(1), echo.echo_after.submit(2)
    exits, others, done = threading.Event(), threading.Event(), threading.Event()

    def leave(_: Any) -> None:
        exits.set()
        sys.exit(1)

    second.add_done_callback(lambda _: done.set())
    first.add_done_callback(leave)
    first.add_done_callback(lambda _: others.set())
    with caplog.at_level(logging.ERROR, "shmipc"):
        open_gate(gated)
        assert exits.wait(60)
        assert others.wait(60), "callbacks of the same future"
        open_gate(echo)
        assert done.wait(60), "callbacks of other futures"
    assert "SystemExit" in caplog.text


def test_awaited_future_times_out_when_it_is_due(system: shmipc.System) -> None:
    gated: Any = system.spawn(Gated)

    async def times_out(seconds: float) -> float:
        started = time.monotonic()
        with pytest.raises(shmipc.Timeout):
            await gated.echo_after.submit(1, timeout=seconds)
        return time.monotonic() - started

    async def several() -> list[float]:
        late = asyncio.ensure_future(times_out(0.4))
        await asyncio.sleep(0)  # it is watched before the others
        return await asyncio.gather(times_out(0.02), times_out(0.04), late)

    took = [asyncio.run(times_out(0.02)) for _ in range(5)]
    assert min(took) >= 0.02
    assert min(took) < 0.2, "five times; it was the half of a second"
    first, second, last = asyncio.run(several())
    assert first >= 0.02
    assert second >= 0.04
    assert last >= 0.4
    assert max(first, second) < last, "each at its own time"


def test_finaliser_of_a_future_that_waits_for_a_lock_holds_up_nobody_who_has_it(system: shmipc.System) -> None:
    """The leader drops the last reference to a future, whose finaliser needs a lock; its holder waits for a result."""
    ref, other = system.spawn(Gated), system.spawn(Gated)
    lock, dropped, held = threading.Lock(), threading.Event(), threading.Event()

    def finalise() -> None:
        dropped.set()
        with lock:
            pass

    def lead() -> None:
        future = ref.echo_after.submit(1)
        weakref.finalize(future, finalise)
        del future
        assert ref.echo_after.submit(2).result(60) == 2

    def hold() -> int:
        with lock:
            held.set()
            asked = other.echo_after.submit(3)
            assert dropped.wait(60)
            open_gate(other)
            return int(asked.result(60))

    def drive() -> None:
        assert held.wait(60)
        open_gate(ref)
        open_gate(ref)

    assert in_threads([hold, lead, drive])[0] == 3


class Guarded(Actor):
    def wait(self, event: shmipc.Event) -> bool:
        return event.wait(20)


@pytest.mark.row("B4")
def test_future_ends_though_its_server_waits_for_an_object(system: shmipc.System) -> None:
    """The text of the error says where the server is: it had no word for that, and the future did not end."""
    event = shmipc.Event()
    guarded: Any = system.spawn(Guarded)
    for act in (
        lambda: guarded.wait.call(event, timeout=0.2),
        lambda: guarded.wait.submit(event, timeout=0.2).result(),
        lambda: asyncio.run(awaited(guarded.wait.submit(event, timeout=0.2))),
    ):
        with pytest.raises(shmipc.Timeout, match=r"waits for object|messages wait there"):
            act()
    event.set()
    assert guarded.wait(event) is True
