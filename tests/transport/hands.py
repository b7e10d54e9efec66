"""Processes that use sync objects as they are told, for the tests of these."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import shmipc
from tests.actors import Actor


class Hand(Actor):
    """Keeps each object it was ever given, by its place in shared memory, so that it is the same at each call."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, int], Any] = {}

    def mine(self, thing: Any) -> Any:
        return self.kept.setdefault((thing.index, thing.life), thing) if hasattr(thing, "life") else thing

    def run(self, thing: Any, method: str, *arguments: Any) -> Any:
        """Call a method; its result."""
        return getattr(self.mine(thing), method)(*arguments)

    def any(self, things: list[Any], timeout: float | None) -> int:
        return shmipc.wait_any([self.mine(thing) for thing in things], timeout)

    def all(self, things: list[Any], timeout: float | None) -> None:
        shmipc.wait_all([self.mine(thing) for thing in things], timeout)

    def late(self, thing: Any, method: str, delay: float) -> float:
        """Call a method after a delay; when that was, on the monotonic clock."""
        time.sleep(delay)
        began = time.monotonic()
        getattr(self.mine(thing), method)()
        return began

    def forget(self) -> None:
        for thing in self.kept.values():
            thing.close()
        self.kept.clear()


@contextmanager
def crew(count: int) -> Iterator[list[Any]]:
    """So many processes of one system, which is the current one."""
    with shmipc.System() as system:
        yield [system.spawn(Hand) for _ in range(count)]


def kill(ref: Any) -> None:
    """SIGKILL, and see it reaped."""
    process = shmipc.process(ref)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10.0)


def queue_up(thing: Any, count: int) -> None:
    """Wait until so many stand in line."""
    deadline = time.monotonic() + 10.0
    while thing.waiting() != count:
        assert time.monotonic() < deadline, f"{thing!r}: {count} were to wait"
        time.sleep(0.001)
