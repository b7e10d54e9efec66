"""Mutexes, semaphores and read-write locks: who has them, who is next, and what a death leaves."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

import shmipc
from shmipc import BytePipe, Locked, Mutex, RWLock, Semaphore
from shmipc.transport import conditions, locks, semaphores
from tests.interruptions import each_place
from tests.transport.hands import crew, kill, queue_up

VICTIMS = 6  # in the gate

People = tuple[list[Any], list[Any]]


pytestmark = pytest.mark.xdist_group("sync mutex")  # one crew for all


@pytest.fixture(autouse=True, scope="module")
def people(request: pytest.FixtureRequest) -> Iterator[People]:
    """Three who live, and those who are to die: their pidfds stay with the system."""
    victims = 200 if request.config.option.full else VICTIMS
    with crew(3 + victims + 4) as made:
        yield made[:3], made[3:]


def test_lock_of_one_kind_is_not_opened_as_another() -> None:
    kinds = {"mutex": Mutex, "lock": shmipc.Lock, "recursive lock": shmipc.RLock}
    for noun, kind in kinds.items():
        with closing(kind(name="one")):
            for other_noun, other in kinds.items():
                if other is kind:
                    with closing(other.open("one")):
                        continue
                with pytest.raises(shmipc.InvalidArgument, match=f"^'one' is a {noun}, not a {other_noun}$"):
                    other.open("one")


@pytest.mark.row("E10")
def test_mutex_times_out_counts_and_is_unlocked_by_its_owner_alone(
    people: People,
) -> None:
    (p2, p3, _), _ = people
    with closing(Mutex()) as mutex:
        assert p2.run(mutex, "lock", 0.0) == Locked.CLEAN
        assert mutex.is_locked()
        for timeout in (0.1, 0.0):
            began = time.monotonic()
            with pytest.raises(shmipc.Timeout if timeout else shmipc.WouldBlock) as caught:
                mutex.lock(timeout)
            assert time.monotonic() - began >= timeout
            assert f"held by process {p2.pid()}" in str(caught.value)
        for act in (mutex.unlock, lambda: p3.run(mutex, "unlock")):
            with pytest.raises(shmipc.NotOwner):
                act()
        assert p2.run(mutex, "lock", 0.0) == Locked.CLEAN  # again
        p2.run(mutex, "unlock")
        with pytest.raises(shmipc.WouldBlock):
            mutex.lock(0)
        p2.run(mutex, "unlock")
        with pytest.raises(shmipc.NotOwner):
            p2.run(mutex, "unlock")
        with mutex:
            # another thread of its process is another
            others: list[int] = []
            thread = threading.Thread(target=lambda: others.append(mutex.take(0)))
            thread.start()
            thread.join(10)
            assert others == [0]
            waits = []
            for place, hand in enumerate((p3, p2)):
                waits.append(hand.run.submit(mutex, "lock", 30.0))
                queue_up(mutex, place + 1)
        assert waits[0].result(10) == Locked.CLEAN  # first in first out
        assert not waits[1].done()
        p3.run(mutex, "unlock")
        assert waits[1].result(10) == Locked.CLEAN
        p2.run(mutex, "unlock")


@pytest.mark.row("E11")
def test_mutex_of_one_who_was_killed_goes_to_the_next_who_is_told(
    people: People, rounds: Callable[[int, int], int]
) -> None:
    (p3, *_), victims = people
    with closing(Mutex()) as mutex:
        for number in range(rounds(200, VICTIMS)):
            p2 = victims.pop()
            assert p2.run(mutex, "lock", 5.0) == Locked.CLEAN
            waits = number % 2
            if waits:  # P1 waits already, or comes later
                results: list[Locked] = []
                thread = threading.Thread(target=lambda got=results: (got.append(mutex.lock(10)), mutex.unlock()))
                thread.start()
                queue_up(mutex, 1)
                kill(p2)
                thread.join(20)
                assert results == [Locked.ABANDONED]
                assert mutex.lock(1.0) == Locked.CLEAN
            else:
                kill(p2)
                assert mutex.lock(1.0) == Locked.ABANDONED
                assert mutex.abandoned
            with pytest.raises(shmipc.Timeout):  # P1 owns it
                p3.run(mutex, "lock", 0.1 if number == 0 else 0.01)
            mutex.unlock()
        assert mutex.lock(0) == Locked.CLEAN
        assert not mutex.abandoned
        mutex.unlock()


def test_mutex_of_a_thread_that_ended_is_abandoned(people: People) -> None:
    with closing(Mutex()) as mutex:
        thread = threading.Thread(target=mutex.lock)
        thread.start()
        thread.join(10)
        assert mutex.lock(5.0) == Locked.ABANDONED
        mutex.unlock()


@pytest.mark.row("E12")
def test_semaphore_counts_and_is_not_restored_by_a_death(people: People) -> None:
    (p2, p3, p4), victims = people
    with closing(Semaphore(2, max=3)) as semaphore:
        assert p2.run(semaphore, "acquire", True, 0.0)
        assert p3.run(semaphore, "acquire", True, 0.0)
        began = time.monotonic()
        assert not p4.run(semaphore, "acquire", True, 0.1)
        assert time.monotonic() - began >= 0.1
        assert semaphore.release(2) == 0
        with pytest.raises(shmipc.LimitExceeded):
            semaphore.release(2)
        assert semaphore.get_value() == 2
        holder = victims.pop()
        assert holder.run(semaphore, "acquire", True, 1.0)
        kill(holder)
        assert semaphore.get_value() == 1
        assert semaphore.acquire(False)
        assert not semaphore.acquire(False)
        # first in first out, one for each that is released
        waits = []
        for place, hand in enumerate((p2, p3, p4)):
            waits.append(hand.run.submit(semaphore, "acquire", True, 30.0))
            queue_up(semaphore, place + 1)
        assert semaphore.release(2) == 0
        assert waits[0].result(10)
        assert waits[1].result(10)
        assert not waits[2].done()
        semaphore.release()
        assert waits[2].result(10)


@pytest.mark.row("E13")
def test_rwlock_lets_readers_in_together_and_outlives_each(people: People) -> None:
    (p2, p3, p4), victims = people
    with RWLock() as lock:
        p2.run(lock, "lock_read", 0.0)
        p3.run(lock, "lock_read", 0.0)
        assert lock.readers() == 2
        began = time.monotonic()
        with pytest.raises(shmipc.Timeout):
            p4.run(lock, "lock_write", 0.1)
        assert time.monotonic() - began >= 0.1
        writes = p4.run.submit(lock, "lock_write", 30.0)
        p2.run(lock, "unlock_read")
        with pytest.raises(shmipc.NotOwner):
            p2.run(lock, "unlock_read")
        assert not writes.done()
        p3.run(lock, "unlock_read")
        writes.result(10)
        for method in ("lock_read", "lock_write"):
            with pytest.raises(shmipc.WouldBlock):
                p2.run(lock, method, 0)
        with pytest.raises(shmipc.NotOwner):
            lock.unlock_write()
        p4.run(lock, "unlock_write")

        for method in ("lock_read", "lock_write"):
            victim = victims.pop()
            victim.run(lock, method, 5.0)
            writes = p4.run.submit(lock, "lock_write", 30.0)
            with pytest.raises(shmipc.WouldBlock):
                lock.lock_write(0)
            kill(victim)
            writes.result(10)
            with pytest.raises(shmipc.WouldBlock):
                lock.lock_read(0)
            p4.run(lock, "unlock_write")
        with lock.reading, lock.reading:
            assert lock.readers() == 2
        with lock.writing:
            assert lock.readers() == 0


def test_line_of_a_mutex_outlives_one_who_was_stopped_in_it(people: People) -> None:
    (p2, *_), victims = people
    first = victims.pop()
    with closing(Semaphore(0)) as semaphore:
        first.run.submit(semaphore, "acquire", True, 60.0)
        queue_up(semaphore, 1)
        waits = p2.run.submit(semaphore, "acquire", True, 60.0)
        queue_up(semaphore, 2)
        pid = shmipc.process(first).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            semaphore.release()
            assert waits.result(20)  # passed over, after two slices
        finally:
            os.kill(pid, signal.SIGCONT)
        semaphore.release()


def test_reader_s_handle_that_is_closed_or_dropped_lets_writers_in() -> None:
    for close in (True, False):
        inside = RWLock(name="inside")
        with closing(RWLock.open("inside")) as other:
            inside.lock_read()
            inside.lock_read()
            with pytest.raises(shmipc.WouldBlock):
                other.lock_write(0)
            if close:
                inside.close()
            del inside
            other.lock_write(0)
            other.unlock_write()


def test_first_in_line_is_first_however_much_it_wants() -> None:
    """Nobody is stopped; and others could have what is there."""
    order: list[str] = []
    lock = RWLock(readers=1)
    lock.lock_read()
    reader, writer = BytePipe.pair(capacity=4096)
    later = reader.other("w")
    writer.write(b"x" * 4000)

    def use(name: str, come: Callable[[], None], go: Callable[[], None]) -> None:
        come()
        order.append(name)
        go()

    threads = []
    for count, name in enumerate(("read", "write"), 1):
        how = getattr(lock, f"lock_{name}"), getattr(lock, f"unlock_{name}")
        threads.append(threading.Thread(target=use, args=(name, *how)))
        threads[-1].start()
        queue_up(lock, count)
    for end, data in ((writer, b"a" * 1000), (later, b"b" * 30)):
        threads.append(threading.Thread(target=end.write, args=(data,)))
        threads[-1].start()
        time.sleep(0.05)
    time.sleep(2.2)  # slices of their waits
    assert (order, threads[3].is_alive()) == ([], True), "it waits behind the first"
    lock.unlock_read()
    stream = b""
    while len(stream) < 5030:
        stream += reader.read()
    for thread in threads:
        thread.join(10)
    assert order == ["read", "write"]
    assert stream == b"x" * 4000 + b"a" * 1000 + b"b" * 30
    for thing in (lock, reader, writer, later):
        thing.close()


class Holder:
    """What holds a lock and is its own garbage."""

    def __init__(self, lock: RWLock) -> None:
        self.lock = lock
        self.itself = self


def test_handles_that_go_in_a_cycle_or_in_a_foreign_thread_are_left(home: shmipc.System) -> None:
    with closing(RWLock(name="left")) as other:
        for way in ("cycle", "thread"):
            inside = RWLock.open("left")
            inside.lock_read()
            if way == "cycle":
                Holder(inside)
                del inside
                gc.collect()
            else:
                held = [inside]
                del inside
                thread = threading.Thread(target=held.clear)  # it has never acted in the system
                thread.start()
                thread.join(20.0)
            other.lock_write(0)
            other.unlock_write()
    reader, writer = BytePipe.pair()
    ends = [writer]
    del writer
    dropping = threading.Timer(0.1, ends.clear)
    dropping.start()
    with closing(reader):
        assert reader.read(1, 20.0) == b""  # while this thread waits
    dropping.join(20.0)


@pytest.mark.parametrize("what", ["Mutex", "Lock", "RLock", "Semaphore", "Condition", "reading", "writing"])
def test_block_gives_back_what_it_has_taken_wherever_a_signal_handler_raises(home: shmipc.System, what: str) -> None:
    thing: Any = RWLock() if what.endswith("ing") else getattr(shmipc, what)()

    def use() -> None:
        with getattr(thing, what) if isinstance(thing, RWLock) else thing:
            pass

    def try_it() -> None:
        try:
            if isinstance(thing, RWLock):
                thing.lock_write(0)
                thing.unlock_write()
            elif isinstance(thing, Mutex):
                thing.lock(0)
                thing.unlock()
            else:
                assert thing.acquire(False)
                thing.release()
            free.append(True)
        except (shmipc.WouldBlock, AssertionError):
            free.append(False)

    for place in each_place(use, locks, semaphores, conditions):
        free: list[bool] = []
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join(20.0)
        assert free == [True], place
    use()
    thing.close()


def test_reader_who_was_broken_off_as_he_came_in_can_leave(home: shmipc.System) -> None:
    with closing(RWLock()) as lock:
        places = entered = 0
        for places in each_place(lock.lock_read, locks):
            if lock.readers():
                lock.unlock_read()
                entered += 1
            assert not lock.readers(), places
        lock.unlock_read()
        assert entered < places
