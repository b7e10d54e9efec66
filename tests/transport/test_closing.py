"""Handles that are closed while other threads of the process wait by them, or have just got something by them."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shmipc
from shmipc import BytePipe, Condition, Event, Mailbox, Mutex, RWLock, Semaphore
from tests.actors import Actor
from tests.transport.hands import crew, kill, queue_up

LIMIT = 20.0  # seconds; a watchdog

pytestmark = pytest.mark.xdist_group("sync closing")  # one crew for all


@pytest.fixture(autouse=True, scope="module")
def victims() -> Iterator[list[Any]]:
    with crew(2) as made:
        yield made


class Waiter(threading.Thread):
    """Waits, and says how that ended: the value, or the exception's type. It lives until it is let go."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.wait, self.end, self.done, self.let_go = wait, None, threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        try:
            self.end: Any = self.wait()
        except Exception as error:
            self.end = type(error)
        self.done.set()
        self.let_go.wait(LIMIT)


@pytest.mark.row("E14")
def test_wait_by_a_handle_of_any_kind_ends_when_it_is_closed() -> None:
    def wait_in(condition: Condition) -> Callable[[], bool]:
        def wait() -> bool:
            with condition:
                return condition.wait()

        return wait

    mutex, lock, semaphore, barrier = Mutex(), shmipc.Lock(), Semaphore(0), shmipc.Barrier(2)
    written, read, full = RWLock(), RWLock(), RWLock(readers=1)
    condition, of_lock = Condition(), Condition()
    reader, far_writer = BytePipe.pair(capacity=16)
    far_reader, writer = BytePipe.pair(capacity=16)
    writer.write(b"x" * 16)
    event, box, queue, other_queue = Event(), Mailbox.create(), shmipc.CompletionQueue(), shmipc.CompletionQueue()
    loop, letters, full_letters = shmipc.MessageLoop(), shmipc.ByteQueue(), shmipc.ByteQueue(slots=1)
    full_letters.post(b"x")
    for hold in (mutex.lock, lock.acquire, written.lock_write, read.lock_read, full.lock_read):
        hold()
    cases: list[tuple[Any, Callable[[], Any]]] = [
        (mutex, mutex.lock),
        (lock, lock.acquire),
        (semaphore, semaphore.acquire),
        (written, written.lock_read),
        (read, read.lock_write),
        (full, full.lock_read),
        (barrier, barrier.wait),
        (condition, wait_in(condition)),
        (of_lock.lock, wait_in(of_lock)),
        (reader, reader.read),
        (writer, lambda: writer.write(b"y")),
        (event, lambda: shmipc.wait_all([event, box])),
        (box, lambda: shmipc.wait_any([box])),
        (queue, queue.get),
        (other_queue, lambda: shmipc.select([other_queue])),
        (loop, loop.run),
        (letters, letters.receive),
        (full_letters, lambda: full_letters.post(b"y")),
    ]
    waiters = [Waiter(wait) for _, wait in cases]
    for thing in (mutex, lock, semaphore, written, full, barrier, condition, of_lock, event):
        queue_up(thing, 1)
    time.sleep(0.1)  # for those of which nobody counts who waits
    assert [waiter.end for waiter in waiters] == [None] * len(cases)
    for (thing, _), waiter in zip(cases, waiters, strict=True):
        thing.close()
        assert waiter.done.wait(LIMIT), thing
    ends = [waiter.end for waiter in waiters]
    assert ends == [shmipc.Closed] * len(cases)
    for waiter in waiters:
        waiter.let_go.set()
    for thing in (condition.lock, of_lock, far_writer, far_reader):
        thing.close()


def rwlock_is_written(lock: RWLock) -> bool:
    return lock.state() == 2


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str, Callable[[Any], bool]]] = {
    # what, how it is held from the start, the waits' method, and was it got?
    "mutex": (lambda: Mutex(name="m"), Mutex.lock, "lock", Mutex.is_locked),
    "lock": (lambda: shmipc.Lock(name="m"), shmipc.Lock.acquire, "acquire", shmipc.Lock.locked),
    "semaphore": (lambda: Semaphore(0, name="m"), id, "acquire", lambda other: other.get_value() == 0),
    "event": (lambda: Event(name="m", manual_reset=False), id, "wait", lambda other: not other.is_set()),
    "reader": (lambda: RWLock(name="m"), RWLock.lock_write, "lock_read", lambda other: other.readers() == 1),
    "writer": (lambda: RWLock(name="m"), RWLock.lock_write, "lock_write", rwlock_is_written),
    "any": (lambda: Semaphore(0, name="m"), id, "wait_any", lambda other: other.get_value() == 0),
    "all": (lambda: Semaphore(0, name="m"), id, "wait_all", lambda other: other.get_value() == 0),
}
GIVES = {"mutex": "unlock", "lock": "release", "event": "set", "reader": "unlock_write", "writer": "unlock_write"}


@pytest.fixture
def undivided() -> Iterator[None]:
    """A thread keeps the interpreter until it waits: what others take meanwhile they have not seen yet."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(LIMIT)
    yield
    sys.setswitchinterval(before)


def spin(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not until():
        assert time.monotonic() < deadline


@pytest.mark.row("E14")
@pytest.mark.parametrize("kind", CASES)
def test_what_is_got_just_as_the_handle_is_closed_is_given_back(kind: str, undivided: None) -> None:
    make, hold, method, is_got = CASES[kind]
    thing = make()
    other = type(thing).open("m")
    hold(other)
    event, give = Event(manual_reset=False, initial=True), getattr(other, GIVES.get(kind, "release"))
    if method == "wait_any":
        waiter = Waiter(lambda: shmipc.wait_any([thing]))
    elif method == "wait_all":
        waiter = Waiter(lambda: shmipc.wait_all([event, thing]))
    else:
        waiter = Waiter(getattr(thing, method))
    queue_up(thing, 1)
    give()
    spin(lambda: is_got(other))
    thing.close()
    assert waiter.done.wait(LIMIT)
    assert waiter.end is shmipc.Closed
    assert event.is_set(), "nor is anything else taken"
    for again in {"reader": ["lock_write"], "event": ["wait"], "any": ["acquire"], "all": ["acquire"]}.get(
        kind, [method]
    ):
        assert getattr(other, again)(timeout=LIMIT) is not False, "nobody has it"
    if kind not in ("event", "semaphore", "any", "all"):
        give()
    waiter.let_go.set()
    event.close()
    other.close()


@pytest.mark.parametrize("kind", [shmipc.Lock, shmipc.RLock])
def test_wait_for_a_condition_says_that_its_lock_is_closed_or_was_abandoned(
    kind: Any, victims: list[Any], undivided: None
) -> None:
    def wait(how: Condition) -> Any:
        with how:
            return how.wait(LIMIT), how.lock.abandoned

    condition = Condition(kind())
    waiter = Waiter(lambda: wait(condition))
    queue_up(condition, 1)
    with condition:
        condition.notify()
        queue_up(condition.lock, 1)
    spin(lambda: condition.lock.state() == 2)  # the waiter has it again, and does not know that yet
    condition.lock.close()
    assert waiter.done.wait(LIMIT)
    assert waiter.end is shmipc.Closed
    waiter.let_go.set()
    condition.close()

    victim = victims.pop()
    condition = Condition(kind())
    waiter = Waiter(lambda: wait(condition))
    queue_up(condition, 1)
    assert victim.run(condition.lock, "acquire", True, LIMIT)
    condition.notify_waiting(1)  # as the victim would, who has the lock
    queue_up(condition.lock, 1)
    kill(victim)
    assert waiter.done.wait(LIMIT)
    assert waiter.end == (True, True)
    waiter.let_go.set()
    with condition:
        assert not condition.wait(0.001)
        assert not condition.lock.abandoned, "by nobody, since"
    condition.lock.close()
    condition.close()


class Decliner(Actor):
    def decline(self, box: Mailbox, told: Any) -> None:
        shmipc.send(told, "waits")
        with contextlib.suppress(shmipc.Timeout):
            box.receive_message(tag=5, timeout=1.0)


def test_rendezvous_that_does_not_wait_outlives_its_handle(system: shmipc.System) -> None:
    """Whoever waits there is stopped, so that it takes its tenth of a second."""
    decliner: Any = system.spawn(Decliner)
    box = Mailbox.create()
    over = decliner.decline.submit(box, shmipc.self())
    assert shmipc.receive(timeout=LIMIT).body == "waits"
    time.sleep(0.05)
    process = shmipc.process(decliner)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        waiter = Waiter(lambda: shmipc.rendezvous(box, "anybody?", timeout=0))
        time.sleep(0.03)
        box.close()
        assert waiter.done.wait(LIMIT)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert waiter.end in (shmipc.WouldBlock, shmipc.Closed)
    waiter.let_go.set()
    over.result(LIMIT)
