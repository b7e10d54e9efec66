"""Events: whom a set releases, what stays, and what closing does to those who wait."""

import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import shmipc
from shmipc import Event
from tests.transport.hands import crew, kill, queue_up

pytestmark = pytest.mark.xdist_group("sync event")  # one crew for all


@pytest.fixture(autouse=True, scope="module")
def five() -> Iterator[list[Any]]:
    with crew(5) as hands:
        yield hands


@pytest.mark.row("E1")
def test_manual_reset_event_releases_all_and_stays_set(five: list[Any]) -> None:
    with Event() as event:
        waits = [hand.run.submit(event, "wait", 30.0) for hand in five]
        queue_up(event, 5)
        event.set()
        assert [wait.result(10) for wait in waits] == [True] * 5
        assert event.wait(0)
        assert five[0].run(event, "wait", 0)
        assert event.is_set()
        event.clear()
        began = time.monotonic()
        assert not five[0].run(event, "wait", 0.1)
        assert time.monotonic() - began >= 0.1
        assert not event.is_set()


@pytest.mark.row("E2")
def test_auto_reset_event_releases_one_at_a_time_in_order(five: list[Any]) -> None:
    with Event(manual_reset=False) as event:
        waits = []
        for place, hand in enumerate(five):
            waits.append(hand.run.submit(event, "wait", 30.0))
            queue_up(event, place + 1)
        event.set()
        assert waits[0].result(10) is True
        time.sleep(0.3)
        assert [wait.done() for wait in waits] == [True, False, False, False, False]
        assert not event.is_set()
        order = []
        for place in (1, 2, 3):
            event.set()
            waits[place].result(10)
            order.append([wait.done() for wait in waits].count(True))
        assert order == [2, 3, 4]
        event.set()
        assert waits[4].result(10) is True
        event.set()
        event.set()
        assert event.wait(0)
        assert not event.wait(0)


@pytest.mark.row("E3")
@pytest.mark.parametrize("manual", [True, False])
def test_initial_state_is_honoured(manual: bool, five: list[Any]) -> None:
    with Event(manual_reset=manual, initial=True) as event:
        assert event.manual_reset is manual
        assert five[0].run(event, "wait", 0)
        assert event.wait(0) is manual
    with Event(manual_reset=manual, initial=False) as event:
        assert not event.wait(0)
        assert not five[0].run(event, "wait", 0)


@pytest.mark.row("E14")
def test_closing_while_others_wait_ends_their_waits(five: list[Any]) -> None:
    event = Event(manual_reset=False)
    other = pickle.loads(pickle.dumps(event))
    ends: list[Any] = []

    def wait(thing: Event) -> None:
        try:
            ends.append(thing.wait())
        except shmipc.Closed as error:
            ends.append(error)

    elsewhere = five[0].run.submit(event, "wait", 30.0)
    queue_up(event, 1)
    threads = [threading.Thread(target=wait, args=(event,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    queue_up(event, 4)
    event.close()
    for thread in threads:
        thread.join(10)
    assert [type(end) for end in ends] == [shmipc.Closed] * 3
    assert event.closed
    with pytest.raises(shmipc.Closed):
        event.wait(0)
    with pytest.raises(shmipc.Closed):
        shmipc.wait_any([event], 0)
    # the object lives for those who have it open
    assert not elsewhere.done()
    other.set()
    assert elsewhere.result(10) is True
    other.close()
    five[0].forget()


def test_named_event_is_found_by_name_and_goes_with_its_last_holder(five: list[Any]) -> None:
    with Event.create("bell") as event:
        assert event.name == "bell"
        with pytest.raises(shmipc.NameTaken):
            Event(name="bell")
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.Semaphore.open("bell")
        with Event.open("bell") as same:
            same.set()
        assert event.is_set()
        assert "set" in repr(event)
    with pytest.raises(shmipc.NotFound):
        Event.open("bell")
    with Event.create("bell") as event:
        event.unlink()
        with pytest.raises(shmipc.NotFound):
            Event.open("bell")


def test_wait_outlives_the_death_of_one_who_waits_before() -> None:
    with crew(2) as (first, second), Event(manual_reset=False) as event:
        first.run.submit(event, "wait", 30.0)
        queue_up(event, 1)
        wait = second.run.submit(event, "wait", 30.0)
        queue_up(event, 2)
        kill(first)
        event.set()
        assert wait.result(10) is True
