"""What one is told about the end of a process: by the call it served, by its exit notice, and afterwards."""

import ctypes
import logging
import os
import signal
import time
from typing import Any

import pytest

import shmipc


class Mortal:
    """An actor that ends in the way it is told to, while it serves the call that tells it."""

    def nap(self, seconds: float) -> None:
        time.sleep(seconds)

    def pid(self) -> int:
        return os.getpid()

    def leave(self, code: Any) -> None:
        raise SystemExit(code)

    def exit(self, code: int) -> None:
        shmipc.exit(code)

    def exit_at_once(self, code: int) -> None:
        os._exit(code)

    def raise_signal(self, number: int) -> None:
        signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), number)
        time.sleep(60)

    def touch_nothing(self) -> None:
        ctypes.string_at(0)

    def sleep(self) -> None:
        time.sleep(600)

    def spawn(self) -> Any:
        return shmipc.System.current().spawn(Mortal)


class FailsInTheEnd(Mortal):
    def on_stop(self, reason: str) -> None:
        raise LookupError(f"no end after {reason}")


def end_when_told(number: int) -> None:
    if number:
        os.kill(os.getpid(), number)
        time.sleep(60)


def return_when_told() -> None:
    message = shmipc.receive()
    if message.body == "raise":
        fail_deep_down()
    if message.body == "exit":
        shmipc.exit(5)


def fail_deep_down() -> None:
    raise ZeroDivisionError("on purpose, deep down")


Cause = tuple[str, int | None, int | None]
SERVING: dict[str, tuple[str, tuple[Any, ...], Cause]] = {
    "SystemExit(7)": ("leave", (7,), ("exited", 7, None)),
    "SystemExit(None)": ("leave", (None,), ("exited", 0, None)),
    "SystemExit(text)": ("leave", ("a reason",), ("exited", 1, None)),
    "shmipc.exit(3)": ("exit", (3,), ("exited", 3, None)),
    "os._exit(9)": ("exit_at_once", (9,), ("exited", 9, None)),
    "os._exit(0)": ("exit_at_once", (0,), ("exited", 0, None)),
    "segmentation fault": ("touch_nothing", (), ("signal", None, signal.SIGSEGV)),
} | {
    number.name: ("raise_signal", (int(number),), ("signal", None, int(number)))
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGHUP, signal.SIGUSR2, signal.SIGBUS)
}


def told_by(error: Any) -> Cause:
    return error.reason, error.exitcode, error.signal


def check_everything_told(system: shmipc.System, ref: Any, watch: shmipc.Monitor, cause: Cause) -> shmipc.ExitNotice:
    """The exit notice, the process and later calls all name this cause; the notice."""
    message = shmipc.receive(kind=shmipc.Kind.EXIT, timeout=10.0)
    notice: shmipc.ExitNotice = message.body
    assert told_by(notice) == cause
    assert (notice.ref, notice.monitor) == (ref, watch.id)
    process = shmipc.process(ref)
    assert process.join(10.0)
    assert process.exitcode == (cause[1] if cause[2] is None else -cause[2])
    with pytest.raises(shmipc.PeerDead) as later:
        ref.pid()
    assert told_by(later.value) == cause
    words = f"signal {int(cause[2])}" if cause[2] is not None else f"exit code {cause[1]}"
    assert cause[0] in str(later.value)
    assert words in str(later.value)
    with pytest.raises(shmipc.InvalidArgument, match=cause[0]):  # a watch that comes too late says it as well
        shmipc.monitor(ref)
    return notice


@pytest.mark.row("M8")
@pytest.mark.allows_rescue
@pytest.mark.parametrize("kind", SERVING)
def test_call_in_service_and_notice_name_how_the_server_ended(system: shmipc.System, kind: str) -> None:
    method, arguments, cause = SERVING[kind]
    ref: Any = system.options(env={"PYTHONFAULTHANDLER": ""}).spawn(Mortal)
    watch = shmipc.monitor(ref)
    ref.nap.cast(0.3)  # it does not end before both are queued
    served, queued = getattr(ref, method).submit(*arguments), ref.pid.submit()
    with pytest.raises(shmipc.PeerDead) as caught:
        served.result(20.0)
    assert told_by(caught.value) == cause
    assert (caught.value.served, caught.value.service) == (True, method)
    assert str(caught.value).endswith(f" while it ran {method}")
    with pytest.raises(shmipc.PeerDead) as caught:
        queued.result(20.0)
    assert told_by(caught.value) == cause
    assert (caught.value.served, caught.value.service) == (False, None)
    notice = check_everything_told(system, ref, watch, cause)
    assert notice.traceback is None


@pytest.mark.row("M8")
@pytest.mark.allows_rescue
@pytest.mark.parametrize("times", [1, 3])
def test_task_in_service_is_named_when_its_worker_dies(system: shmipc.System, times: int) -> None:
    """Also one whose function the worker has not run before."""
    with system.pool(1) as pool:
        for _ in range(times - 1):
            assert pool.submit(end_when_told, 0).result(20.0) is None
        with pytest.raises(shmipc.PeerDead, match="while it ran end_when_told") as caught:
            pool.submit(end_when_told, 9).result(20.0)
        assert (caught.value.served, caught.value.service) == (True, "end_when_told")


@pytest.mark.row("M8")
def test_actor_that_is_told_to_stop_has_returned(system: shmipc.System) -> None:
    ref: Any = system.spawn(Mortal)
    watch = shmipc.monitor(ref)
    assert shmipc.process(ref).stop()
    check_everything_told(system, ref, watch, ("returned", 0, None))


@pytest.mark.row("M8")
@pytest.mark.allows_rescue
def test_actor_that_the_library_kills_was_killed(system: shmipc.System) -> None:
    ref: Any = system.spawn(Mortal)
    watch = shmipc.monitor(ref)
    served = ref.sleep.submit()
    assert not shmipc.process(ref).stop(timeout=0.2)
    with pytest.raises(shmipc.PeerDead) as caught:
        served.result(10.0)
    assert told_by(caught.value) == ("killed", None, signal.SIGKILL)
    check_everything_told(system, ref, watch, ("killed", None, signal.SIGKILL))


@pytest.mark.row("M8")
@pytest.mark.parametrize(
    ("order", "cause"),
    [("return", ("returned", 0, None)), ("exit", ("exited", 5, None)), ("raise", ("exception", 1, None))],
)
def test_end_of_a_function_actor_says_how_it_ended(
    system: shmipc.System, caplog: Any, order: str, cause: Cause
) -> None:
    ref: Any = system.spawn(return_when_told)
    watch = shmipc.monitor(ref)
    with caplog.at_level(logging.CRITICAL, "shmipc.actor"):
        shmipc.send(ref, order)
        message = shmipc.receive(kind=shmipc.Kind.EXIT, timeout=10.0)
    notice = message.body
    assert told_by(notice) == cause
    assert notice.monitor == watch.id
    assert shmipc.process(ref).join(10.0)
    assert shmipc.process(ref).exitcode == cause[1]
    if order == "raise":
        assert "ZeroDivisionError: on purpose, deep down" in notice.traceback
        assert "in fail_deep_down" in notice.traceback
    else:
        assert notice.traceback is None
    with pytest.raises(shmipc.PeerDead) as later:
        shmipc.send(ref, "anybody?")
    assert told_by(later.value) == cause


@pytest.mark.row("M8")
def test_exception_of_on_stop_is_the_cause_with_its_traceback(system: shmipc.System, caplog: Any) -> None:
    ref: Any = system.spawn(FailsInTheEnd)
    watch = shmipc.monitor(ref)
    with caplog.at_level(logging.CRITICAL, "shmipc.actor"):
        shmipc.process(ref).stop()
        notice = check_everything_told(system, ref, watch, ("exception", 1, None))
    assert notice.traceback is not None
    assert "LookupError: no end after returned" in notice.traceback


@pytest.mark.row("M8")
@pytest.mark.allows_rescue
def test_actor_whose_creator_was_killed_is_orphaned(system: shmipc.System) -> None:
    creator: Any = system.spawn(Mortal)
    ref: Any = creator.spawn()
    watch = shmipc.monitor(ref)
    assert ref.pid() > 0
    served = ref.sleep.submit()
    os.kill(creator.pid(), signal.SIGKILL)
    with pytest.raises(shmipc.PeerDead) as caught:
        served.result(10.0)
    cause = told_by(caught.value)
    assert cause in (("orphaned", None, signal.SIGKILL), ("signal", None, signal.SIGKILL))
    check_everything_told(system, ref, watch, cause)


@pytest.mark.row("M8")
@pytest.mark.allows_rescue
def test_cause_is_right_for_every_life_of_one_slot(system: shmipc.System) -> None:
    ended = []
    for code in range(1, 8):
        ref: Any = system.spawn(Mortal)
        process = shmipc.process(ref)
        with pytest.raises(shmipc.PeerDead) as caught:
            ref.exit_at_once(code)
        assert told_by(caught.value) == ("exited", code, None)
        assert process.join(10.0)
        ended.append((process, code))
    for process, code in ended:
        assert process.exitcode == code
