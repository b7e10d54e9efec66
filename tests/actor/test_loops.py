"""The loops of class actors: what a handler that waits puts aside, how it ends, and what it raises."""

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc.facades import rt_ipc_sync
from tests.actors import Actor, Echo, record, record_of


class Mine(BaseException):
    pass


class Interleaved(Actor):
    """Some of its handlers are `async def`."""

    def receive(self) -> Any:
        return shmipc.receive().body

    async def receive_aside(self) -> Any:
        return (await asyncio.to_thread(shmipc.receive)).body

    async def ping(self) -> str:
        return "pong"

    async def cancelled(self) -> None:
        task = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        task.cancel()
        await task

    async def cancels_itself(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def fail(self, error: BaseException) -> None:
        raise error

    async def exit_while_others_wait(self) -> None:
        shmipc.exit(3)

    def on_message(self, message: shmipc.Message) -> None:
        pass  # the loop took it before the handler that waits


class Waits(Actor):
    """Waits in a handler for messages of its own."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def wait(self, told: Any, conditions: dict[str, Any]) -> tuple[Any, float]:
        shmipc.send(told, "waits")
        started = time.monotonic()
        try:
            body = shmipc.receive(**conditions).body
        except shmipc.ShmipcError as error:
            body = type(error).__name__
        return body, time.monotonic() - started

    def note(self, number: int) -> None:
        self.numbers.append(number)

    def noted(self) -> list[int]:
        numbers, self.numbers = self.numbers, []
        return numbers


def test_what_is_for_the_loop_stays_in_the_mailbox_while_a_handler_receives(system: shmipc.System) -> None:
    ref: Any = system.options(slots=8).spawn(Waits)

    def wait(**conditions: Any) -> Any:
        waits = ref.wait.submit(shmipc.self(), conditions)
        assert shmipc.receive(timeout=60).body == "waits"
        return waits

    waits = wait(timeout=0.5)
    for number in range(7):
        time.sleep(0.1)
        ref.note.cast(number)
    body, took = waits.result(60)
    assert body == "Timeout"
    assert 0.5 <= took < 1.0, "the deadline is one"
    assert ref.noted() == list(range(7))
    waits = wait(kind=shmipc.Kind.CAST)
    futures = [ref.note.submit(1), ref.note.cast(2), ref.note.submit(3), ref.note.cast(4)]
    shmipc.send(ref, "message")
    assert waits.result(60)[0] == "message"
    assert ref.noted() == [1, 2, 3, 4], "in the order in which they were sent"
    for conditions in ({}, {"tag": None}):
        waits = wait(**conditions)
        for number in range(8):
            ref.note.cast(number)
        assert waits.result(60)[0] == "Starved"
        assert ref.noted() == list(range(8))
    wait(tag=77)
    for number in range(7):
        ref.note.cast(number)
    shmipc.monitor(ref)
    shmipc.process(ref).kill()
    assert shmipc.receive(kind=shmipc.Kind.EXIT, timeout=60).body.undelivered == 7
    del futures


class AlsoAsync(Waits):
    """Its plain handlers run alone on an asyncio loop."""

    def block(self) -> None:
        threading.Event().wait()

    async def on_message(self, message: shmipc.Message) -> None:
        pass

    def ask_in_two_steps(self, to: Any) -> Any:
        tag = shmipc.send(to, "question", kind=shmipc.Kind.CALL, tag=shmipc.GENERATE)
        return shmipc.receive(kind=shmipc.Kind.REPLY, tag=tag, timeout=30).body

    def send_synchronously(self, to: Any) -> int:
        return int(rt_ipc_sync.rt_ipc_send(to, b"data", rt_ipc_sync.SYNC))


def release_all() -> None:
    while rt_ipc_sync.rt_ipc_recv(-1)[0] == rt_ipc_sync.RT_SUCCESS:
        pass


def test_async_actor_leaves_in_the_mailbox_what_it_does_not_begin(system: shmipc.System) -> None:
    ref: Any = system.options(slots=16).spawn(AlsoAsync)
    echo, releasing = system.spawn(Echo), system.spawn(release_all)
    shmipc.rendezvous(releasing, b"", timeout=30)  # it receives
    for _ in range(5):
        waits = ref.wait.submit(shmipc.self(), {"tag": 5, "timeout": 30})
        assert shmipc.receive(timeout=30).body == "waits"
        shmipc.send(ref, "its own", tag=5)
        assert waits.result(60)[0] == "its own"
        assert ref.ask_in_two_steps(echo) == "question"
        assert ref.send_synchronously(releasing) == 0
    ref.block.cast()
    accepted = 0
    while accepted < 100:
        try:
            shmipc.send(ref, accepted, timeout=0.2)
        except shmipc.Timeout:
            break
        accepted += 1
    assert accepted == 16
    shmipc.monitor(ref)
    shmipc.process(ref).kill()
    assert shmipc.receive(kind=shmipc.Kind.EXIT, timeout=60).body.undelivered == accepted


def send_until(ref: Any, waits: Any) -> bool:
    shmipc.send(ref, "message")
    return bool(waits.done())


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_calls_that_a_waiting_handler_takes_are_served(system: shmipc.System, limit: int, eventually: Any) -> None:
    ref: Any = system.options(max_concurrency=limit).spawn(Interleaved)
    for _ in range(20):
        waits, answer = ref.receive.submit(), ref.ping.submit()
        eventually(lambda: send_until(ref, waits), 30)  # noqa: B023
        assert waits.result(60) == "message"
        assert answer.result(60) == "pong"


def test_call_is_served_while_another_handler_goes_on_waiting(system: shmipc.System, eventually: Any) -> None:
    ref: Any = system.options(max_concurrency=2).spawn(Interleaved)
    for _ in range(20):
        waits = ref.receive_aside.submit()
        assert ref.ping.call(timeout=30) == "pong"
        eventually(lambda: send_until(ref, waits), 30)  # noqa: B023
        assert waits.result(60) == "message"


@pytest.mark.parametrize("name", ["cancelled", "cancels_itself"])
def test_handler_that_ends_cancelled_answers(system: shmipc.System, caplog: Any, eventually: Any, name: str) -> None:
    ref: Any = system.spawn(Interleaved)
    error = getattr(ref, name).submit().exception(60)
    assert isinstance(error, asyncio.CancelledError)
    with caplog.at_level(logging.ERROR, "shmipc.actor"):
        getattr(ref, name).cast()
        eventually(lambda: record_of(system, ref)["failed_casts"] == 1, 60)
        assert ref.ping() == "pong"
        eventually(lambda: "a cast failed" in caplog.text, 60)


def test_calls_under_way_when_an_async_actor_exits_see_its_end(system: shmipc.System) -> None:
    ref: Any = system.spawn(Interleaved)
    waits = ref.receive_aside.submit()
    error = ref.exit_while_others_wait.submit().exception(60)
    assert isinstance(error, shmipc.PeerDead)
    assert (error.reason, error.exitcode) == ("exited", 3)
    assert isinstance(waits.exception(60), shmipc.PeerDead)


class Plain(Actor):
    """Its handlers run one at a time."""

    def __init__(self, path: str = "") -> None:
        self.path = path

    def receive(self) -> str:
        try:
            shmipc.receive()
        except shmipc.Closed:
            return "closed"
        return "message"

    def ping(self) -> str:
        return "pong"

    def fail(self, error: BaseException) -> None:
        raise error

    def on_stop(self, reason: str) -> None:
        if self.path:
            record(self.path, reason)


class Both(Plain):
    async def other(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Plain, Both])
def test_stop_ends_the_wait_of_a_handler(
    system: shmipc.System, tmp_path: Path, kind: type[Plain], eventually: Any
) -> None:
    path = tmp_path / "stops"
    ref: Any = system.spawn(kind, str(path))
    waits, behind = ref.receive.submit(), ref.ping.submit()
    process = shmipc.process(ref)
    assert process.stop(timeout=60), "in order"
    assert waits.result(60) == "closed"
    assert behind.result(60) == "pong", "it was queued before the stop"
    assert process.exitcode == 0
    assert path.read_text() == "returned\n"


RAISED = [KeyboardInterrupt("some"), GeneratorExit("some"), asyncio.CancelledError("some"), Mine("some")]


@pytest.mark.parametrize("kind", [Plain, Interleaved])
def test_exceptions_of_any_base_go_to_the_caller(system: shmipc.System, kind: Any, eventually: Any) -> None:
    ref: Any = system.spawn(kind)
    pid = shmipc.process(ref).pid
    for number, error in enumerate(RAISED):
        for ask in (lambda: ref.fail(error), lambda: ref.fail.submit(error).result(60)):  # noqa: B023
            with pytest.raises(type(error), match="some"):
                ask()
        ref.fail.cast(error)
        eventually(lambda: record_of(system, ref)["failed_casts"] == number + 1, 60)  # noqa: B023
    assert ref.pid() == pid, "the actor goes on"
    ended = ref.fail.submit(SystemExit(7)).exception(60)
    assert isinstance(ended, shmipc.PeerDead)
    assert (ended.reason, ended.exitcode) == ("exited", 7)


class Trap:
    """A request that raises when it is read."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, (self.error,)


@pytest.mark.parametrize("kind", [Plain, Interleaved])
@pytest.mark.parametrize("error", [LookupError("some"), *RAISED], ids=lambda error: type(error).__name__)
def test_requests_that_raise_when_they_are_read_go_back_to_the_caller(
    system: shmipc.System, kind: Any, error: BaseException
) -> None:
    ref: Any = system.spawn(kind)
    pid = shmipc.process(ref).pid
    with pytest.raises(type(error), match="some"):
        ref.fail.call(Trap(error), timeout=60)
    assert ref.pid() == pid, "the actor goes on"


def fail(error: BaseException) -> None:
    raise error


def ping() -> str:
    return "pong"


class Unsendable:
    def __reduce__(self) -> Any:
        raise Mine("cannot be sent")


def unsendable() -> Unsendable:
    return Unsendable()


def test_exceptions_of_any_base_leave_a_pool_its_worker(system: shmipc.System) -> None:
    with system.pool(1) as pool:
        before = [shmipc.process(ref).pid for ref in pool.refs]
        for error in RAISED:
            assert type(pool.submit(fail, error).exception(60)) is type(error)
            with pytest.raises(type(error), match="some"):
                list(pool.map(fail, [error, error], chunksize=2))
        assert pool.submit(unsendable).exception(60) is not None
        assert pool.submit(ping).result(60) == "pong"
        assert [shmipc.process(ref).pid for ref in pool.refs] == before


class Listener:
    """An actor a second thread of which receives too, and so takes calls that are the loop's."""

    def listen(self) -> None:
        threading.Thread(target=self.receive, daemon=True).start()

    def receive(self) -> None:
        while True:
            try:
                shmipc.receive()
            except shmipc.Closed:
                return

    def add(self, a: int, b: int) -> int:
        return a + b


class AwaitingListener(Listener):
    async def multiply(self, a: int, b: int) -> int:
        return a * b


@pytest.mark.race
@pytest.mark.parametrize("listener", [Listener, AwaitingListener])
def test_call_that_another_thread_received_is_served_by_the_loop(system: shmipc.System, listener: type) -> None:
    ref: Any = system.spawn(listener)
    ref.listen()
    for k in range(40):
        if k % 4 == 0:
            threading.Event().wait(0.003)  # until both threads of the actor sleep
        assert ref.add.call(k, 1, timeout=5.0) == k + 1


@pytest.mark.race
def test_task_that_another_thread_received_is_served_by_the_loop(system: shmipc.System) -> None:
    with system.pool(1, Listener) as pool:
        pool.submit(Listener.listen).result(5)
        for k in range(40):
            assert pool.submit(Listener.add, k, 1).result(5) == k + 1
            if k % 4 == 0:
                ref: Any = pool.refs[0]
                assert ref.add.call(k, 1, timeout=5.0) == k + 1


def wait_for_one(filtered: str) -> None:
    if filtered == "receive":
        shmipc.receive(tag=7)
    else:
        shmipc.receive_matching([shmipc.Match(tag=7), shmipc.Match(tag=8)])


class Waiting(Actor):
    def wait(self, filtered: str) -> str:
        try:
            wait_for_one(filtered)
        except shmipc.Closed:
            return "told"
        return "served"


@pytest.mark.parametrize("filtered", ["receive", "receive_matching"])
def test_order_to_stop_ends_a_receive_with_a_filter(system: shmipc.System, filtered: str) -> None:
    alone: Any = system.spawn(wait_for_one, filtered)
    server: Any = system.spawn(Waiting)
    future = server.wait.submit(filtered)
    shmipc.send(alone, "of another tag", tag=9)
    processes = [shmipc.process(ref) for ref in (alone, server)]
    for process in processes:
        assert process.stop(20.0)  # True: it ended by itself
        assert process.exitcode == 0
    assert future.result(10) == "told"
