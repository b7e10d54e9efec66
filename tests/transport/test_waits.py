"""Waits on many things: which one, what is taken, what is left as it was, and what a wait is refused for."""

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc import Alarm, Bus, Event, Locked, Mailbox, Mutex, Semaphore, select, wait_all, wait_any
from tests.transport.hands import crew, kill, queue_up

pytestmark = pytest.mark.xdist_group("sync waits")  # one crew for all


@pytest.fixture(autouse=True, scope="module")
def people() -> Iterator[list[Any]]:
    """Two who live, and those who are to die: their pidfds stay with the system."""
    with crew(6) as made:
        yield made


def autos(count: int) -> list[Event]:
    return [Event(manual_reset=False) for _ in range(count)]


def close(*things: Any) -> None:
    for thing in things:
        thing.close()


@pytest.mark.row("E4")
def test_wait_for_one_says_set_timeout_or_refuses(people: list[Any]) -> None:
    other = people[0]
    event = Event(manual_reset=False, initial=True)
    assert wait_any([event], 5.0) == 0
    began = time.monotonic()
    with pytest.raises(shmipc.Timeout):
        wait_any([event], 0.1)
    assert time.monotonic() - began >= 0.1
    with pytest.raises(shmipc.WouldBlock):
        wait_any([event], 0)
    wakes = other.late.submit(event, "set", 0.05)
    assert wait_any([event], 30.0) == 0
    wakes.result(10)
    event.close()
    with pytest.raises(shmipc.Closed):
        wait_any([event], 0)
    for strange in ("x", 1.5, True, None):
        with pytest.raises(TypeError):
            wait_any([strange], 0)
    for number in (-1, 1 << 40):
        with pytest.raises(shmipc.InvalidArgument):
            wait_any([number], 0)
    with shmipc.RWLock() as lock, pytest.raises(TypeError):
        wait_any([lock], 0)
    other.forget()


@pytest.mark.row("E5")
def test_wait_for_any_takes_the_smallest_index_alone() -> None:
    events = autos(4)
    events[2].set()
    events[1].set()
    assert wait_any(events, 5.0) == 1
    assert [event.is_set() for event in events] == [False, False, True, False]
    assert wait_any(events, 0) == 2
    close(*events)


@pytest.mark.row("E6")
def test_wait_for_all_takes_nothing_before_all_are_there(people: list[Any], rounds: Callable[[int, int], int]) -> None:
    waiter, other = people[:2]
    first, second = events = autos(2)
    first.set()
    began = time.monotonic()
    with pytest.raises(shmipc.Timeout):
        wait_all(events, 0.1)
    assert time.monotonic() - began >= 0.1
    assert first.is_set()
    # nobody sees it missing on the way, looking or taking, while waits for all come and go
    waits = waiter.all.submit(events, 60.0)
    wakes = other.late.submit(second, "set", 0.2)
    queue_up(second, 1)
    until = time.monotonic() + 0.15
    while time.monotonic() < until:
        with pytest.raises(shmipc.WouldBlock):
            wait_all(events, 0)
        assert first.is_set()
        assert first.wait(0)
        first.set()
    wakes.result(10)
    waits.result(10)
    assert not first.is_set()
    assert not second.is_set()
    # all kinds at once, and what is only looked at
    mutex, semaphore, box, alarm = Mutex(), Semaphore(1), Mailbox.create(), Alarm(0.05)
    reading, writing = os.pipe()
    everything = [first, mutex, semaphore, box, alarm, reading]
    for step in (first.set, lambda: box.send(1), lambda: os.write(writing, b"x")):
        step()
        assert (first.is_set(), mutex.is_locked(), semaphore.get_value()) == (True, False, 1)
        if step is first.set:
            with pytest.raises(shmipc.WouldBlock):
                wait_all(everything, 0)
    wait_all(everything, 30.0)
    assert alarm.is_due()
    assert (first.is_set(), mutex.is_mine(), semaphore.get_value(), box.count()) == (False, True, 0, 1)
    mutex.unlock()
    # an abandoned mutex says so
    victim = people.pop()
    assert victim.run(mutex, "lock", 0.0) == Locked.CLEAN
    kill(victim)
    first.set()
    wait_all([first, mutex], 30.0)
    assert mutex.abandoned
    mutex.unlock()
    first.set()
    wait_all([first, mutex], 0)
    assert not mutex.abandoned
    mutex.unlock()
    os.close(reading)
    os.close(writing)
    close(first, second, mutex, semaphore, box)
    waiter.forget()
    other.forget()


@pytest.mark.row("E7")
def test_wait_refuses_none_too_many_and_duplicates_and_takes_nothing() -> None:
    events = autos(2)
    for event in events:
        event.set()
    same = Event.create("same", manual_reset=False)
    again = Event.open("same")
    same.set()
    for wait in (wait_any, wait_all, select):
        for wrong in ([], [events[0], events[1], events[0]], [same, events[0], again], [*events] * 513, [3, 4, 3]):
            with pytest.raises(shmipc.InvalidArgument):
                wait(wrong, 5.0)
        with pytest.raises(shmipc.LimitExceeded, match="1024"):
            wait([*events, *range(100, 1123)], 5.0)
    assert all(event.is_set() for event in (*events, same))
    close(*events, same, again)


@pytest.mark.row("E8")
def test_mailbox_is_there_while_it_has_a_message_and_none_is_taken(
    people: list[Any],
) -> None:
    other = people[0]
    with Mailbox.create() as box:
        box.send(1)
        box.send(2)
        assert wait_any([box], 5.0) == wait_any([box], 5.0) == 0
        assert (box.receive(0), box.receive(0)) == (1, 2)
        began = time.monotonic()
        with pytest.raises(shmipc.Timeout):
            wait_any([box], 0.1)
        assert time.monotonic() - began >= 0.1
        # what is set aside counts too
        box.post("odd", tag=1)
        box.post("even", tag=2)
        assert box.receive_message(tag=2, timeout=0).body == "even"
        assert wait_any([box], 0) == 0
        assert box.receive(0) == "odd"
        with pytest.raises(shmipc.WouldBlock):
            wait_any([box], 0)
        # one who waits is woken, also beside one who receives
        receives = other.run.submit(box, "receive", 30.0)
        wakes = threading.Timer(0.05, lambda: [box.send(n) for n in range(2)])
        wakes.start()
        assert wait_any([box], 30.0) == 0
        wakes.join()
        assert receives.result(10) == 0
        assert box.receive(5.0) == 1
    other.forget()


@pytest.mark.row("E8", "K16")
def test_request_whose_caller_has_given_up_is_no_message_to_wait_for() -> None:
    box, port, event = Mailbox.create(slots=8), shmipc.Port.create(), Event(initial=True, manual_reset=False)
    matching, queue = box.matching(tag=7), shmipc.CompletionQueue()

    def give_up(target: Any) -> None:
        with pytest.raises(shmipc.Timeout):
            shmipc.call(target, None, tag=7, timeout=0.05)

    def nothing_is_there() -> bool:
        with pytest.raises(shmipc.WouldBlock):
            wait_all([event, box], 0)
        return event.is_set() and select([matching, box, port], 0) == []

    for target in (box, port):
        give_up(target)
    assert nothing_is_there()
    # set aside, and then given up
    call = threading.Thread(target=give_up, args=(box,))
    call.start()
    while box.count() < 2:
        time.sleep(0.001)
    with pytest.raises(shmipc.WouldBlock):
        box.receive_message(tag=8, timeout=0)
    call.join()
    assert nothing_is_there()
    queue.wait(box, tag=1)
    with pytest.raises(shmipc.Timeout):
        queue.get(0.05)
    # what comes behind it is there
    box.post("seven", tag=7)
    assert select([matching, box, port], 0) == [0, 1]
    assert queue.get(10).tag == 1
    assert wait_all([event, box], 0) is None
    assert not event.is_set()
    assert box.receive_message(tag=7, timeout=0).body == "seven"
    assert select([matching, box], 0) == []
    queue.close()
    port.delete()
    close(box, event)


@pytest.mark.row("E9")
def test_process_is_there_for_ever_after_its_end(people: list[Any]) -> None:
    child = people.pop()
    process = shmipc.process(child)
    with pytest.raises(shmipc.WouldBlock):
        wait_any([process], 0)
    killer = threading.Timer(0.05, kill, (child,))
    killer.start()
    assert wait_any([process], 30.0) == 0
    began = time.monotonic()
    assert wait_any([process], 30.0) == 0
    wait_all([process], 30.0)
    assert time.monotonic() - began < 5.0
    killer.join()
    assert process.exitcode == -9
    assert wait_any([process], 0) == 0


@pytest.mark.row("E15")
def test_one_wait_over_a_mailbox_an_event_a_mutex_and_a_process(people: list[Any]) -> None:
    other = people[0]
    child = people.pop()
    box, event, mutex, process = Mailbox.create(), Event(manual_reset=False), Mutex(), shmipc.process(child)
    assert other.run(mutex, "lock", 5.0) == Locked.CLEAN
    mixed = [box, event, mutex, process]
    with pytest.raises(shmipc.Timeout):
        wait_any(mixed, 0.05)
    waits: list[Any] = []

    def trigger(act: Callable[[], object]) -> int:
        """What ends a wait that has begun before."""
        thread = threading.Thread(target=lambda: waits.append(wait_any(mixed, 30.0)))
        thread.start()
        queue_up(event, 1)
        act()
        thread.join(20)
        return int(waits[-1])

    assert trigger(lambda: box.send("hello")) == 0
    assert box.receive(0) == "hello"
    assert trigger(event.set) == 1
    assert trigger(lambda: other.run(mutex, "unlock")) == 2  # and the thread has ended with it
    assert wait_any(mixed, 10.0) == 2
    assert mutex.abandoned
    assert wait_any(mixed, 0) == 2  # a thread gets what it has again
    mutex.unlock()
    mutex.unlock()
    assert other.run(mutex, "lock", 5.0) == Locked.CLEAN
    assert trigger(lambda: kill(child)) == 3
    assert process.exitcode == -9
    other.run(mutex, "unlock")
    close(box, event, mutex)
    other.forget()


def test_select_says_in_order_what_is_there_and_takes_nothing(
    people: list[Any], rounds: Callable[[int, int], int]
) -> None:
    """Against an oracle; a source of each kind. Completion queues are missing, and so is the mark of row K16."""
    random.seed(16)
    bus = Bus.create(frames=4)
    reader = bus.subscribe()
    box, event, auto, semaphore = Mailbox.create(), Event(), Event(manual_reset=False), Semaphore(0)
    near, far = socket.socketpair()
    alarm, child = Alarm(), people.pop()
    process = shmipc.process(child)
    tagged, port = Mailbox.create(), shmipc.Port.create()
    sources = [
        box,
        event,
        reader,
        semaphore,
        process,
        auto,
        near,
        alarm,
        tagged.matching(tag=7),
        tagged.matching(tag=8),
        port,
    ]
    acts: dict[int, tuple[Callable[[], object], Callable[[], object]]] = {
        0: (lambda: box.send(1), lambda: box.receive(0)),
        1: (event.set, event.clear),
        2: (lambda: bus.publish(np.zeros(3)), lambda: reader.receive(0)),
        3: (semaphore.release, lambda: semaphore.acquire(False)),
        5: (auto.set, lambda: auto.wait(0)),
        6: (lambda: far.send(b"x"), lambda: near.recv(1)),
        7: (lambda: alarm.set(0), alarm.clear),
        8: (lambda: tagged.post("seven", tag=7), lambda: tagged.receive_message(tag=7, timeout=0)),
        9: (lambda: tagged.post("eight", tag=8), lambda: tagged.receive_message(tag=8, timeout=0)),
        10: (lambda: port.send(1), lambda: port.receive(0)),
    }
    there: set[int] = set()
    for number in range(rounds(1000, 150)):
        for place in random.sample(sorted(acts), random.randrange(1, 4)):
            acts[place][place in there]()
            there ^= {place}
        order = random.sample(range(len(sources)), len(sources))
        found = select([sources[place] for place in order], 0)
        assert found == [n for n, place in enumerate(order) if place in there]
        if there:
            assert select([sources[place] for place in order], 30.0) == found
        if number == 75:
            kill(child)
            there.add(4)
    for place in there - {4}:
        acts[place][1]()
    # it ends when one comes, and not before
    for place, (come, go) in acts.items():
        if place == 7:  # an alarm that is set while one waits is seen by the next wait
            continue
        with_others = [source for source in sources if source is not process]
        came: list[float] = []

        def act(come: Callable[[], object] = come, came: list[float] = came) -> None:
            came.append(time.monotonic())
            come()

        thread = threading.Timer(0.03, act)
        thread.start()
        found = select(with_others, 30.0)
        assert time.monotonic() >= came[0]
        thread.join()
        assert [with_others[n] for n in found] == [sources[place]]
        go()
    assert select([box, event], 0.02) == []
    near.close()
    far.close()
    port.delete()
    close(reader, bus, box, tagged, event, auto, semaphore)


def test_wait_that_gives_up_names_who_has_what_it_waited_for(people: list[Any]) -> None:
    other = people[0]
    event, mutex = Event(), Mutex()
    assert other.run(mutex, "lock", 5.0) == Locked.CLEAN
    holder = f"mutex {mutex.index}, held by process {shmipc.process(other).pid}"
    for wait in (wait_any, wait_all):
        with pytest.raises(shmipc.Timeout, match=rf"{holder}, 0 waiting; event {event.index}, not set"):
            wait([event, mutex, Alarm()], 0.01)
    other.run(mutex, "unlock")
    close(event, mutex)
    other.forget()


def test_wait_for_a_thousand_things(people: list[Any]) -> None:
    other = people[0]
    with Event(manual_reset=False) as last:
        many = [*autos(500), last]
        waits = other.any.submit(many, 60.0)
        queue_up(last, 1)
        last.set()
        assert waits.result(20) == 500
        for event in many:
            event.set()
        wait_all(many, 10.0)
        assert not any(event.is_set() for event in many)
        close(*many[:-1])
        other.forget()


def test_wait_that_is_interrupted_takes_nothing() -> None:
    class Ring(Exception):
        pass

    def ring(*_: Any) -> None:
        raise Ring

    old = signal.signal(signal.SIGALRM, ring)
    event, semaphore = Event(manual_reset=False), Semaphore(1)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Ring):
            wait_all([event, semaphore])
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Ring):
            event.wait()
    finally:
        signal.signal(signal.SIGALRM, old)
    assert semaphore.get_value() == 1
    assert event.waiting() == semaphore.waiting() == 0
    close(event, semaphore)
