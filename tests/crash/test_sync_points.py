"""At every step of sync objects and pipes a process is killed, and the others have what it had, or go on without it."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shmipc
from shmipc import BytePipe, Event, Mutex, RWLock, Semaphore, _native
from tests.actors import Actor

POINTS = [
    *["sync_make", "sync_open", "sync_take", "sync_change", "sync_changed", "sync_decide", "sync_claim", "sync_taken"],
    *["sync_finish", "rw_enter", "rw_entered", "rw_leave", "rw_left", "rw_taken"],
    *["pipe_join", "pipe_joined", "pipe_right", "pipe_copy", "pipe_commit", "pipe_release", "pipe_released"],
    *["pipe_leave", "pipe_left", "sync_adopt", "barrier_counted"],
]
WAITS = ["wait_arm", "wait_register", "wait_park", "wait_leave", "wait_deregister", "wait_pass", "wait_idle"]


class Things:
    """One of each, of one system."""

    def __init__(self) -> None:
        self.event, self.semaphore = Event(manual_reset=False), Semaphore(0)
        self.mutex, self.rwlock = Mutex(), RWLock()
        self.condition, self.barrier = shmipc.Condition(), shmipc.Barrier(2)
        self.reader, self.writer = BytePipe.pair(capacity=256)

    def all(self) -> list[Any]:
        return [
            *(self.event, self.semaphore, self.mutex, self.rwlock, self.condition, self.condition.lock),
            *(self.barrier, self.reader, self.writer),
        ]


class Victim(Actor):
    def live(self, things: Things, point: str, after: int) -> None:
        """Use everything, until it dies at the point."""
        _native.kill_point_arm(point, after, signal.SIGKILL)
        while True:
            self.use(things)

    def use(self, t: Things) -> None:
        t.event.set()
        t.semaphore.release()
        shmipc.wait_all([t.mutex, t.event, t.semaphore], 0)
        t.mutex.unlock()
        t.event.wait(0.001)
        t.semaphore.acquire(True, 0.001)
        with t.rwlock.reading:
            pass
        with t.rwlock.writing:
            pass
        with shmipc.CompletionQueue() as queue:
            queue.wait(t.mutex, timeout=0.05)
            if queue.get().error is None:
                t.mutex.unlock()
        with t.condition:
            t.condition.notify()
            t.condition.wait(0.001)
        try:
            t.barrier.wait(0.001)
        except threading.BrokenBarrierError:
            t.barrier.reset()
        Event().close()
        with t.writer.other("w") as writer, t.reader.other("r") as reader:
            writer.write(b"abcd", 0)
            reader.read(100, 0)


@pytest.fixture(scope="module")
def victims() -> Iterator[list[Any]]:
    """Their pidfds stay with the system."""
    with shmipc.System() as system:
        yield [system.spawn(Victim) for _ in [*POINTS, *WAITS]]


def works(t: Things) -> None:
    """Everything can be had again."""
    t.mutex.lock(20.0)
    t.mutex.unlock()
    t.rwlock.lock_write(20.0)
    t.rwlock.unlock_write()
    assert t.rwlock.readers() == 0
    assert t.condition.acquire(True, 20.0)
    t.condition.release()
    t.barrier.reset()
    assert t.barrier.n_waiting == 0
    t.event.set()
    assert t.event.wait(0)
    assert t.semaphore.release() >= 0
    while t.semaphore.acquire(False):
        pass
    assert t.reader.reading == t.reader.writing == 1
    while shmipc.select([t.reader], 0):
        assert set(t.reader.read(256, 0)) <= set(b"abcd")
    assert t.writer.write(b"x" * 256, 0) == 256
    assert t.reader.read(256, 0) == b"x" * 256
    assert all(thing.waiting() == 0 for thing in t.all())


@pytest.mark.timeout(120)
def test_others_go_on_when_one_is_killed_at_any_step_of_a_sync_object(
    victims: list[Any], rounds: Callable[[int, int], int]
) -> None:
    things = Things()
    for number, point in enumerate([*POINTS, *WAITS] if _native.KILL_POINTS else []):
        victim = victims.pop()
        process = shmipc.process(victim)
        victim.live.cast(things, point, 1 + number % 3)
        try:
            assert process.join(30.0), f"it did not come to {point}"
            assert process.exitcode == -signal.SIGKILL
            deadline = time.monotonic() + 10.0
            while things.reader.reading + things.reader.writing > 2 and time.monotonic() < deadline:
                time.sleep(0.001)  # it is being reaped
            works(things)
        except BaseException as error:
            error.add_note(f"dead at {point}")
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            raise
    for thing in things.all():
        thing.close()
