"""The names that multiprocessing has too: the same answers as multiprocessing's, and what a death changes."""

import asyncio
import inspect
import multiprocessing.synchronize
import os
import pickle
import signal
import threading
import time
from typing import Any

import pytest

import shmipc
from shmipc import _native
from shmipc.transport import conditions
from tests.actors import Actor
from tests.interruptions import each_place
from tests.transport.hands import kill, queue_up

LIMIT = 20.0  # seconds; a watchdog
NAMES = ["Event", "Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Barrier"]


class Party(Actor):
    def acquire(self, lock: Any, timeout: float | None = None) -> bool:
        self.lock = lock
        return bool(lock.acquire(True, timeout))

    def release(self) -> None:
        self.lock.release()

    def wait(self, thing: Any, timeout: float | None = None) -> Any:
        if isinstance(thing, shmipc.Condition):
            with thing:
                return thing.wait(timeout)
        try:
            return thing.wait(timeout)
        except threading.BrokenBarrierError:
            return "broken"


class Host(Party):
    """An async actor, which looks after its callers while a plain method of it waits."""

    async def sleep(self) -> None:
        await asyncio.sleep(LIMIT)

    def die_at(self, point: str, barrier: shmipc.Barrier) -> None:
        self.barrier = barrier
        _native.kill_point_arm(point, 1, signal.SIGKILL)
        barrier.wait(LIMIT)


pytestmark = pytest.mark.xdist_group("sync drop_ins")  # one crew for all


@pytest.fixture(autouse=True, scope="module")
def people(home: shmipc.System) -> list[Any]:
    return [home.spawn(Party) for _ in range(6)]


@pytest.fixture(autouse=True, scope="module")
def hosts(home: shmipc.System) -> list[Any]:
    return [home.spawn(Host) for _ in range(4)]


@pytest.mark.parametrize("name", NAMES)
def test_methods_have_the_signatures_of_multiprocessing(name: str) -> None:
    ours, theirs = getattr(shmipc, name), getattr(multiprocessing.synchronize, name)
    wanted = [p for p in inspect.signature(theirs.__init__).parameters if p not in ("self", "ctx", "kwargs", "args")]
    assert list(inspect.signature(ours.__init__).parameters)[1 : 1 + len(wanted)] == wanted
    methods = [
        *("set", "clear", "is_set", "wait", "acquire", "release", "get_value", "notify", "notify_all", "wait_for"),
        *("reset", "abort", "parties", "n_waiting", "broken"),
    ]
    for method in methods:
        assert hasattr(ours, method) or not hasattr(theirs, method), method


def test_locks_answer_as_multiprocessing_does(people: list[Any]) -> None:
    p2, p3 = people[:2]
    lock = shmipc.Lock()
    assert lock.acquire()
    assert not lock.acquire(False)
    assert not lock.acquire(timeout=0.01)
    assert not lock.acquire(True, -1.0)
    assert not p2.acquire(lock, 0.01)
    p2.release()  # anybody may
    with pytest.raises(ValueError, match="release"):
        lock.release()
    with lock as got:
        assert got is True
        assert lock.locked()
    thread = threading.Thread(target=lock.acquire)  # it is the process's: a thread may end with it
    thread.start()
    thread.join(10)
    assert not lock.acquire(False)
    lock.release()
    rlock = shmipc.RLock()
    with rlock, rlock:
        assert not p2.acquire(rlock, 0.01)
    with pytest.raises(AssertionError):
        rlock.release()
    assert p2.acquire(rlock)
    with pytest.raises(AssertionError):
        rlock.release()
    waits = p3.acquire.submit(rlock, 30.0)
    queue_up(rlock, 1)
    p2.release()
    assert waits.result(10) is True
    p3.release()
    bounded = shmipc.BoundedSemaphore(2)
    with bounded:
        assert bounded.get_value() == 1
    with pytest.raises(ValueError, match="too many"):
        bounded.release()
    assert shmipc.Semaphore().get_value() == 1
    # one whose holder was killed is had by the next, who can ask
    victim = people.pop()
    assert victim.acquire(lock)
    kill(victim)
    assert lock.acquire(timeout=10)
    assert lock.abandoned
    lock.release()
    again = pickle.loads(pickle.dumps(lock))
    assert again.acquire(False)
    assert not lock.acquire(False)
    lock.release()
    for thing in (lock, again, rlock, bounded):
        thing.close()


def test_bounded_semaphore_is_created_with_its_value_as_its_limit(people: list[Any]) -> None:
    made = shmipc.BoundedSemaphore.create("bounded", value=2)
    found, plain = shmipc.BoundedSemaphore.open("bounded"), shmipc.BoundedSemaphore.create()
    assert (found.get_value(), found.max, plain.max) == (2, 2, 1)
    for thing in (made, found, plain):
        thing.close()


def test_locks_are_not_opened_as_locks_of_another_kind(people: list[Any]) -> None:
    lock, rlock, mutex = shmipc.Lock(name="lock"), shmipc.RLock(name="rlock"), shmipc.Mutex(name="mutex")
    for cls, name in (
        (shmipc.RLock, "lock"),
        (shmipc.Mutex, "lock"),
        (shmipc.Lock, "rlock"),
        (shmipc.Lock, "mutex"),
        (shmipc.Event, "lock"),
    ):
        with pytest.raises(shmipc.InvalidArgument):
            cls.open(name)
    for thing in (lock, rlock, mutex):
        again = type(thing).open(thing.name or "")
        assert again.flags == thing.flags
        again.close()
        thing.close()


def test_condition_is_opened_with_the_lock_of_its_maker(people: list[Any]) -> None:
    made = shmipc.Condition(shmipc.Lock(name="door"), name="bell")
    found = shmipc.Condition.open("bell", shmipc.Lock.open("door"))
    assert pickle.loads(pickle.dumps(found)).lock.index == made.lock.index
    waits = people[0].wait.submit(made, 30.0)
    queue_up(found, 1)
    with found:
        assert made.lock.locked()
        found.notify()
    assert waits.result(10) is True
    with pytest.raises(TypeError, match="lock"):
        shmipc.Condition.open("bell")  # type: ignore[call-arg]
    for wrong in (5, threading.Lock(), shmipc.Mutex()):
        with pytest.raises(TypeError, match="Lock or RLock"):
            shmipc.Condition(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="Lock or RLock"):
            shmipc.Condition.open("bell", wrong)  # type: ignore[arg-type]
    for thing in (found.lock, found, made.lock, made):
        thing.close()
    with pytest.raises(shmipc.Closed):
        shmipc.Condition(made.lock)


def test_condition_is_of_the_system_of_its_lock(people: list[Any]) -> None:
    lock = shmipc.Lock()
    with shmipc.System() as other:
        condition = shmipc.Condition(lock)
        assert condition.member is lock.member
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.Condition(lock, system=other)
    with condition:
        condition.notify()
    lock.close()
    condition.close()


def test_timeout_that_is_no_number_is_named(people: list[Any]) -> None:
    event, lock, condition = shmipc.Event(), shmipc.Lock(), shmipc.Condition()
    with condition:
        for call in (event.wait, lambda timeout: lock.acquire(timeout=timeout), condition.wait):
            with pytest.raises(TypeError, match=r"timeout .* not str"):
                call("1")  # type: ignore[arg-type]
            with pytest.raises(shmipc.InvalidArgument, match="timeout"):
                call(float("nan"))
        with pytest.raises(TypeError, match=r"timeout .* not str"):
            condition.wait_for(lambda: False, "1")  # type: ignore[arg-type]
    assert not event.wait(-1)
    never = shmipc.Event.__new__(shmipc.Event)
    with pytest.raises(shmipc.Closed, match="never open"):
        never.name  # asking is the act
    for thing in (event, lock, condition.lock, condition):
        thing.close()


def test_condition_notifies_in_order_and_never_the_dead(people: list[Any]) -> None:
    condition = shmipc.Condition()
    p2, p3 = people[:2]
    for act in (condition.wait, condition.notify):
        with pytest.raises(RuntimeError):
            act()
    with condition:
        began = time.monotonic()
        assert not condition.wait(0.05)
        assert time.monotonic() - began >= 0.05
        assert condition.lock.locked()
        assert not condition.wait(0)
        condition.notify()  # nobody waits: no effect
        assert not condition.wait(0.01)
    victim = people.pop()
    waits = []
    for place, person in enumerate((victim, p2, p3)):
        waits.append(person.wait.submit(condition, 60.0))
        queue_up(condition, place + 1)
    kill(victim)
    with condition:
        condition.notify()
    assert waits[1].result(10) is True
    assert not waits[2].done()
    with condition:
        condition.notify_all()
    assert waits[2].result(10) is True
    values = [0]

    def count() -> None:
        for _ in range(3):
            with condition:
                values[0] += 1
                condition.notify()

    thread = threading.Thread(target=count)
    with condition:
        thread.start()
        assert condition.wait_for(lambda: values[0] >= 3, 30.0)
        assert not condition.wait_for(lambda: False, 0.01)
    thread.join()
    with condition, condition:  # an RLock: given back whole, and had again as often
        assert not condition.wait(0.01)
    assert not condition.lock.locked()
    condition.lock.close()
    condition.close()


def test_barrier_lets_all_go_at_once_and_breaks_when_one_dies(people: list[Any]) -> None:
    p2, p3 = people[:2]
    acted: list[int] = []
    barrier = shmipc.Barrier(3, lambda: acted.append(1))
    plain = shmipc.Barrier(3)
    for _ in range(3):
        waits = [person.wait.submit(plain, 30.0) for person in (p2, p3)]
        mine = plain.wait(30.0)
        assert sorted([mine, *(wait.result(10) for wait in waits)]) == [0, 1, 2]
    threads = [threading.Thread(target=barrier.wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    barrier.wait()
    for thread in threads:
        thread.join(10)
    assert acted == [1]
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)

    # a timeout, an abort and a reset are told to all who wait
    with pytest.raises(threading.BrokenBarrierError):
        plain.wait(0.05)
    assert plain.broken
    assert p2.wait(plain, 1.0) == "broken"
    plain.reset()
    for act in (plain.abort, plain.reset):
        wait = p2.wait.submit(plain, 30.0)
        queue_up(plain, 1)
        assert plain.n_waiting == 1
        act()
        assert wait.result(10) == "broken"
        assert plain.broken is (act == plain.abort)
        plain.reset()

    # so is a death
    victim = people.pop()
    victim.wait.submit(plain, 60.0)
    queue_up(plain, 1)
    wait = p2.wait.submit(plain, 60.0)
    queue_up(plain, 2)
    kill(victim)
    assert wait.result(20) == "broken"
    plain.reset()

    def fail() -> None:
        raise LookupError

    failing = shmipc.Barrier(1, fail)
    with pytest.raises(LookupError):
        failing.wait()
    assert failing.broken

    # the action ends its own round
    undone = shmipc.Barrier(1, lambda: undone.reset())
    with pytest.raises(threading.BrokenBarrierError):
        undone.wait()
    assert not undone.broken
    for thing in (barrier, plain, failing, undone):
        thing.close()


def test_caller_who_gives_up_ends_no_wait_that_others_rely_on(hosts: list[Any]) -> None:
    host = hosts[0]
    barrier, condition = shmipc.Barrier(2), shmipc.Condition()
    for thing in (barrier, condition):
        with pytest.raises(shmipc.Timeout):
            host.sleep.call(timeout=0.05)
        wait = host.wait.submit(thing)
        queue_up(thing, 1)
        with pytest.raises(shmipc.Timeout):
            host.sleep.call(timeout=0.05)  # and while it waits
        with pytest.raises(shmipc.Timeout):
            wait.result(0.2)
        if thing is barrier:
            assert barrier.wait(LIMIT) == 1
            assert wait.result(LIMIT) == 0
        else:
            with condition:
                condition.notify()
            assert wait.result(LIMIT) is True
    condition.lock.close()
    for thing in (barrier, condition):
        thing.close()


def test_barrier_breaks_when_one_dies_who_is_counted_and_not_yet_in_line(hosts: list[Any]) -> None:
    with shmipc.Barrier(3) as barrier:
        for point, broken in (("barrier_counted", True), ("wait_park", True), ("wait_register", False)):
            victim = hosts.pop()
            with pytest.raises(shmipc.PeerDead):
                victim.die_at(point, barrier)
            shmipc.process(victim).join(LIMIT)
            if broken:
                with pytest.raises(threading.BrokenBarrierError):
                    barrier.wait(LIMIT)
            assert (barrier.broken, barrier.n_waiting) == (broken, 0), point
            barrier.reset()


def test_party_that_looks_late_is_told_that_its_round_was_reset(people: list[Any], eventually: Any) -> None:
    """Another round was reset since, or some were passed."""
    for later in ("reset", "passed"):
        with shmipc.Barrier(2) as barrier:
            waiting = people[0].wait.submit(barrier, LIMIT)
            queue_up(barrier, 1)
            process = shmipc.process(people[0])
            os.kill(process.pid, signal.SIGSTOP)
            try:
                barrier.reset()
                other = people[1].wait.submit(barrier, LIMIT)
                eventually(lambda: barrier.n_waiting == 1)
                if later == "reset":
                    barrier.reset()
                    assert other.result(LIMIT) == "broken"
                else:
                    barrier.wait(LIMIT)
                    assert other.result(LIMIT) == 0
            finally:
                os.kill(process.pid, signal.SIGCONT)
            assert waiting.result(LIMIT) == "broken"


@pytest.mark.row("E14")
def test_handle_that_is_closed_while_the_last_one_acts_breaks_the_barrier(people: list[Any]) -> None:
    acts, closed, over = threading.Event(), threading.Event(), threading.Event()
    ends: list[type | int] = []

    def action() -> None:
        acts.set()
        assert closed.wait(LIMIT)

    barrier = shmipc.Barrier(2, action, name="acts")

    def last() -> None:
        try:
            ends.append(barrier.wait(LIMIT))
        except BaseException as error:
            ends.append(type(error))
        over.wait(LIMIT)  # a pool's thread, which lives on

    waiting = people[0].wait.submit(shmipc.Barrier.open("acts"), LIMIT)
    queue_up(barrier, 1)
    thread = threading.Thread(target=last)
    thread.start()
    assert acts.wait(LIMIT)
    started = time.monotonic()
    barrier.close()
    assert waiting.result(LIMIT) == "broken"
    assert time.monotonic() - started < 5.0
    closed.set()
    over.set()
    thread.join(LIMIT)
    assert ends == [shmipc.Closed]


@pytest.mark.row("E14")
@pytest.mark.parametrize("acts", [False, True])
def test_barrier_is_opened_or_broken_when_a_signal_handler_raises_in_the_last_that_comes(acts: bool) -> None:
    barrier = shmipc.Barrier(2, (lambda: None) if acts else None)
    threads: list[threading.Thread] = []
    ends: list[Any] = []
    places = 0

    def wait() -> None:
        try:
            ends.append(barrier.wait(LIMIT))
        except threading.BrokenBarrierError:
            ends.append("broken")

    def come() -> None:
        barrier.reset()
        threads.append(threading.Thread(target=wait))
        threads[-1].start()
        queue_up(barrier, 1)

    come()
    for places in each_place(lambda: barrier.wait(LIMIT), conditions):
        assert barrier.owner() is None, places
        if barrier.n_waiting and not barrier.broken:  # it was broken off before it had come
            barrier.abort()
        threads[-1].join(LIMIT)
        assert len(ends) == len(threads), places
        come()
    threads[-1].join(LIMIT)
    assert ends[-1] == 0
    assert places > 2
    barrier.close()


@pytest.mark.row("E14")
def test_handle_that_is_dropped_by_the_last_one_before_it_acts_breaks_the_barrier() -> None:
    dropped = shmipc.Barrier(2, name="dropped")
    other = shmipc.Barrier.open("dropped")
    ends: list[Any] = []

    def wait() -> None:
        try:
            ends.append(other.wait())
        except threading.BrokenBarrierError:
            ends.append("broken")

    for way in ("here", "in a foreign thread"):
        thread = threading.Thread(target=wait)
        thread.start()
        queue_up(other, 1)
        assert dropped.arrive(LIMIT) == (1, True)
        held = [dropped]
        del dropped
        if way == "here":
            held.clear()
        else:
            dropping = threading.Thread(target=held.clear)
            dropping.start()
            dropping.join(LIMIT)
        thread.join(5.0)
        if thread.is_alive():  # for it waits for good
            other.abort()
            thread.join(LIMIT)
            pytest.fail(way)
        assert ends.pop() == "broken"
        other.reset()
        dropped = shmipc.Barrier.open("dropped")
    dropped.close()
    other.close()


def test_notice_is_for_those_who_waited_when_it_was_given(people: list[Any]) -> None:
    """Not for who comes later, though the one whom it is for was stopped."""
    condition = shmipc.Condition()
    waiting = people[0].wait.submit(condition, LIMIT)
    queue_up(condition, 1)
    pid = shmipc.process(people[0]).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with condition:
            condition.notify_all()
            assert not condition.wait(1.6)  # three slices
    finally:
        os.kill(pid, signal.SIGCONT)
    assert waiting.result(LIMIT) is True
    condition.close()


def come(barrier: shmipc.Barrier, outcomes: list[Any]) -> None:
    try:
        outcomes.append(barrier.wait(LIMIT))
    except (ValueError, threading.BrokenBarrierError) as error:
        outcomes.append(type(error).__name__)


def test_action_of_a_round_that_was_reset_breaks_no_later_one() -> None:
    acts, goes_on, outcomes = threading.Event(), threading.Event(), []

    def act() -> None:
        if not acts.is_set():
            acts.set()
            goes_on.wait(LIMIT)
            raise ValueError("of the first round")

    with shmipc.Barrier(2, act) as barrier:
        first = [threading.Thread(target=come, args=(barrier, outcomes)) for _ in range(2)]
        for thread in first:
            thread.start()
        assert acts.wait(LIMIT)
        barrier.reset()
        later = threading.Thread(target=come, args=(barrier, outcomes))
        later.start()
        while barrier.n_waiting < 1:
            time.sleep(0.001)
        goes_on.set()
        for thread in first:
            thread.join(LIMIT)
        assert sorted(outcomes) == ["BrokenBarrierError", "ValueError"]
        assert not barrier.broken
        come(barrier, outcomes)
        later.join(LIMIT)
        assert sorted(outcomes[2:]) == [0, 1]


def test_action_that_fails_breaks_its_round_though_that_of_a_round_before_has_just_ended() -> None:
    acts, goes_on, outcomes, rounds = threading.Event(), threading.Event(), [], []
    fails = threading.Event()

    def act() -> None:
        rounds.append(threading.current_thread())
        if len(rounds) == 1:
            acts.set()
            goes_on.wait(LIMIT)
        else:
            fails.wait(LIMIT)
            raise ValueError("of the second round")

    with shmipc.Barrier(2, act) as barrier:
        threads = [threading.Thread(target=come, args=(barrier, outcomes)) for _ in range(4)]
        for thread in threads[:2]:
            thread.start()
        assert acts.wait(LIMIT)
        barrier.reset()
        for thread in threads[2:]:
            thread.start()
        while len(rounds) < 2:
            time.sleep(0.001)
        goes_on.set()
        for thread in threads[:2]:
            thread.join(LIMIT)
        fails.set()
        for thread in threads[2:]:
            thread.join(LIMIT)
        assert outcomes[:2] == ["BrokenBarrierError"] * 2
        assert sorted(outcomes[2:]) == ["BrokenBarrierError", "ValueError"]
        assert barrier.broken
