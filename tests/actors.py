"""Actors that tests run in processes of their own, and what a test asks of a whole system.

A test module's own classes work as well; here are those that several modules need, and those that are started
hundreds of times: a worker that is to import this module need not import pytest.
"""

import gc
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import shmipc
from shmipc.memory import membership

COUNTED = ("members", "mailboxes", "blocks", "leases", "undelivered")


class Actor:
    """What every actor of the tests can do."""

    def pid(self) -> int:
        return os.getpid()

    def trim(self) -> None:
        membership.current().member.trim()


class Echo(Actor):
    """Answers with what it was sent, by a method and as a raw message."""

    def echo(self, value: Any) -> Any:
        return value

    def on_message(self, message: shmipc.Message) -> None:
        if message.kind == shmipc.Kind.CALL:
            shmipc.reply(message, message.body)


class Holder(Actor):
    """Keeps every raw message, and answers calls when it is told to."""

    def __init__(self) -> None:
        self.held: list[shmipc.Message] = []

    def on_message(self, message: shmipc.Message) -> None:
        self.held.append(message)

    def count(self) -> int:
        return len(self.held)

    def bodies(self) -> list[Any]:
        return [message.body for message in self.held]

    def describe(self, place: int) -> tuple[Any, int, int | None]:
        """Sender, kind and tag of what it holds at that place."""
        message = self.held[place]
        return message.sender, message.kind, message.tag

    def answer(self, place: int, value: Any) -> str:
        return outcome(lambda: shmipc.reply(self.held[place], value))

    def answer_error(self, place: int, error: BaseException) -> str:
        return outcome(lambda: shmipc.reply_error(self.held[place], error))

    def forget(self) -> None:
        self.held.clear()


class Client(Actor):
    """Sends and calls on behalf of a test."""

    def send(self, to: Any, body: Any, kind: int = 0, tag: int | None = None) -> None:
        shmipc.send(to, body, kind=shmipc.Kind(kind), tag=tag)

    def send_numbers(self, to: Any, count: int, tag: int | None = None) -> None:
        for number in range(count):
            shmipc.send(to, number, tag=tag)

    def call(self, to: Any, body: Any, timeout: float | None = None) -> Any:
        return shmipc.call(to, body, timeout=timeout)

    def call_in_threads(self, to: Any, bodies: list[Any]) -> list[Any]:
        """One thread for each body, all at once; the answers in the order of the bodies."""
        return in_threads([lambda body=body: shmipc.call(to, body) for body in bodies])  # type: ignore[misc]

    def pending(self) -> int:
        return shmipc.pending()

    def on_message(self, message: shmipc.Message) -> None:
        pass


class Gate(Actor):
    """Takes nothing while it is shut."""

    def shut(self) -> None:
        shmipc.receive(tag=1)


class Sleeper(Actor):
    """Serves a call for as long as it lives."""

    def sleep(self, told: Any) -> None:
        shmipc.send(told, "serving", tag=1)
        threading.Event().wait()

    def on_message(self, message: shmipc.Message) -> None:
        if message.kind == shmipc.Kind.CALL:
            self.sleep(message.sender)


def answer_and_end(way: str) -> None:
    message = shmipc.receive(kind=shmipc.Kind.CALL)
    shmipc.reply(message, ("answer to", message.body))
    if way == "_exit":
        os._exit(3)
    elif way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "exit":
        shmipc.exit(3)


class SlowStart:
    """Never gets done with its constructor."""

    def __init__(self) -> None:
        threading.Event().wait()


class Waiter(Actor):
    """Blocks in one of many ways until a limit, and says what that took."""

    def wait(
        self, way: str, seconds: float, full: shmipc.Mailbox, some: shmipc.Mailbox, shut: Any
    ) -> tuple[str, float, float]:
        """Name of what ended it, seconds, and seconds of CPU of all threads of this process."""
        own, process = shmipc.Mailbox.create(slots=4), shmipc.process(shut)
        acts: dict[str, Callable[[], object]] = {
            "receive": lambda: shmipc.receive(timeout=seconds),
            "filtered receive": lambda: shmipc.receive(tag=9, timeout=seconds),
            "mailbox": lambda: own.receive(timeout=seconds),
            "filtered mailbox": lambda: some.receive_message(tag=9, timeout=seconds),
            "send": lambda: full.send(b"one more", timeout=seconds),
            "call": lambda: shut.pid.call(timeout=seconds),
            "submit": lambda: shut.pid.submit().result(seconds),
            "open": lambda: shmipc.Mailbox.open("absent", timeout=seconds),
            "join": lambda: process.join(seconds),
        }
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        ended = outcome(acts[way])
        elapsed, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
        return ended, elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def record(path: str, what: str) -> None:
    """Append a line, and have it on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{what}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Ledger(Actor):
    """Its handler writes down which request it executes."""

    def __init__(self, path: str) -> None:
        self.path = path

    def execute(self, request: str) -> str:
        record(self.path, request)
        return request

    def on_message(self, message: shmipc.Message) -> None:
        shmipc.reply(message, self.execute(message.body))


def serve_ledger(mailbox: shmipc.Mailbox, path: str) -> None:
    """One of several that take calls from a mailbox which stands alone."""
    while True:
        message = mailbox.receive_message(kind=shmipc.Kind.CALL)
        record(path, message.body)
        try:
            shmipc.reply(message, message.body)
        except (shmipc.Aborted, shmipc.PeerDead):
            pass


class GatedLedger(Ledger):
    def shut(self) -> None:
        shmipc.receive(tag=1)


class CallingClient(Client):
    def go_on(self, to: Any, generation: int) -> None:
        for number in range(1_000_000):
            assert shmipc.call(to, f"{generation}.{number}") == f"{generation}.{number}"


def outcome(act: Callable[[], object]) -> str:
    """Name of the error it raises, or "done"."""
    try:
        act()
    except Exception as error:
        return type(error).__name__
    return "done"


def in_threads(acts: list[Callable[[], Any]]) -> list[Any]:
    """Run all at once, one thread each; their values, or the first error."""
    results: list[Any] = [None] * len(acts)
    errors: list[BaseException] = []

    def run(place: int) -> None:
        try:
            results[place] = acts[place]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def usage(system: shmipc.System, *refs: Any) -> dict[str, int]:
    """What the system holds, when this process and the given actors have let go of their warm blocks."""
    gc.collect()
    for ref in refs:
        ref.trim()
    system._membership.member.trim()
    counters = system.statistics().as_dict()
    return {name: counters[name] for name in COUNTED}


def record_of(system: shmipc.System, ref: Any) -> dict[str, Any]:
    """What the member table says of a living actor."""
    pid = shmipc.process(ref).pid
    return next(record for record in system._membership.member.members() if record["pid"] == pid)


# --- ends ------------------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[str, int | None, int | None]] = {  # reason, exit code and signal that are told of each
    "return": ("returned", 0, None),
    "exception": ("exception", 1, None),
    "_exit": ("exited", 7, None),
    "SIGKILL": ("signal", None, signal.SIGKILL),
    "SIGSEGV": ("signal", None, signal.SIGSEGV),
}


def end_in(way: str) -> None:
    """End this process in one of the ways of `ENDS`."""
    if way == "exception":
        raise ZeroDivisionError("on purpose")
    if way == "_exit":
        os._exit(7)
    if way in ("SIGKILL", "SIGSEGV"):
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.Signals[way])
        threading.Event().wait()


def no_notice_comes(seconds: float = 0.3) -> None:
    """Watched for that long: nothing. A sleep by intent."""
    assert outcome(lambda: shmipc.receive(kind=shmipc.Kind.EXIT, timeout=seconds)) == "Timeout"
