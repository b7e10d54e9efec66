"""Receiving the most urgent, by a range of tags, and looking without receiving."""

import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc import Mailbox
from tests.actors import Actor, usage

LIMIT = 20.0  # seconds; a watchdog


class Sender(Actor):
    def post(self, box: Mailbox, messages: list[tuple[int, int, Any]]) -> None:
        for tag, priority, body in messages:
            shmipc.send(box, body, tag=tag, priority=priority)

    def call(self, box: Mailbox, body: Any) -> Any:
        return shmipc.call(box, body, tag=3)

    def drain(self, box: Mailbox) -> list[Any]:
        found = []
        while box.count():
            try:
                found.append(box.receive_message(urgent=True, timeout=0).body)
            except shmipc.MailboxEmpty:
                pass  # another is at it
        return found

    def die_looking(self, box: Mailbox, point: str, after: int) -> None:
        import signal

        shmipc._native.kill_point_arm(point, after, signal.SIGKILL)
        while True:
            box.peek(urgent=True)


@pytest.fixture(autouse=True, scope="module")
def senders(home: shmipc.System) -> list[Any]:
    return [home.spawn(Sender) for _ in range(3)]


@pytest.fixture
def sender(senders: list[Any]) -> Any:
    return senders[0]


@pytest.fixture
def box(home: shmipc.System) -> Iterator[Mailbox]:
    with Mailbox.create(slots=64) as made:
        yield made


def taken(box: Mailbox, **how: Any) -> list[Any]:
    found = []
    while True:
        try:
            found.append(box.receive_message(timeout=0, **how).body)
        except shmipc.MailboxEmpty:
            return found


@pytest.mark.row("F16")
def test_urgent_receive_takes_the_lowest_priority_first_and_in_order_within_it(box: Mailbox, sender: Any) -> None:
    mixed = [(1 + n % 5, random.Random(n).choice([0, 3, 7, 1023]), n) for n in range(40)]
    sender.post(box, mixed)
    first = box.receive_message(urgent=True)
    assert (first.body, first.priority) == next((n, p) for tag, p, n in sorted(mixed, key=lambda m: (m[1], m[2])))
    rest = [n for _, _, n in sorted(mixed, key=lambda m: (m[1], m[2]))][1:]
    only = [n for n in rest if 2 <= mixed[n][0] <= 3]
    assert taken(box, urgent=True, tags=(2, 3)) == only, "the range alone, the most urgent first"
    assert taken(box, urgent=True) == [n for n in rest if n not in only]


def test_receive_that_is_not_urgent_keeps_the_order_of_arrival(box: Mailbox, sender: Any) -> None:
    sender.post(box, [(1, 9, "a"), (2, 0, "b"), (3, 5, "c")])
    assert box.peek(urgent=True).body == "b"
    assert taken(box) == ["a", "b", "c"]
    sender.post(box, [(1, 9, "a"), (2, 0, "b"), (3, 5, "c")])
    assert taken(box, tags=(2, 3)) == ["b", "c"]
    assert box.receive(0) == "a"


def test_room_is_given_back_only_by_what_is_received(home: shmipc.System, sender: Any) -> None:
    with Mailbox.create(slots=3) as box:
        sender.post(box, [(1, 1, 1), (2, 0, 2), (3, 2, 3)])
        assert box.peek(urgent=True).body == 2
        with pytest.raises(shmipc.MailboxFull):
            shmipc.send(box, 4, timeout=0)
        assert box.receive_message(urgent=True).body == 2
        shmipc.send(box, 4, tag=9, timeout=0)
        with pytest.raises(shmipc.Starved) as caught:
            box.receive_message(tags=(5, 6), timeout=LIMIT)
        assert caught.value.depth == 3
        assert taken(box, urgent=True) == [4, 1, 3]


def test_peek_shows_what_comes_next_and_leaves_it(box: Mailbox, sender: Any) -> None:
    with pytest.raises(shmipc.MailboxEmpty):
        box.peek()
    with pytest.raises(shmipc.Timeout):
        box.peek(timeout=0.05)
    sender.post(box, [(5, 1, b"x" * 100_000), (6, 1, "second")])
    seen = [box.peek(), box.peek(tag=6), box.peek(tags=(5, 6), urgent=True)]
    assert [message.body for message in seen] == [b"x" * 100_000, "second", b"x" * 100_000]
    assert box.count() == 2
    assert box.receive_peeked(seen[1]).body == "second"
    with pytest.raises(shmipc.MailboxEmpty):
        box.receive_peeked(seen[1])
    assert box.receive() == b"x" * 100_000


def test_peeked_request_is_answered_only_by_who_receives_it(box: Mailbox, sender: Any) -> None:
    answer = sender.call.submit(box, "question")
    seen = box.peek(timeout=LIMIT)
    assert seen.body == "question"
    assert not seen.is_call
    with pytest.raises(shmipc.InvalidArgument):
        seen.reply("no")
    message = box.receive_peeked(seen)
    message.reply("yes")
    assert answer.result(LIMIT) == "yes"


def test_peeked_array_is_the_same_memory_and_its_block_goes_with_the_last(home: shmipc.System, sender: Any) -> None:
    before = usage(home, sender)
    with Mailbox.create(slots=4) as box:
        array = shmipc.shared((50_000,), np.uint8)
        shmipc.send(box, array)
        seen = [box.peek().body for _ in range(3)]
        array[7] = 9
        assert [int(one[7]) for one in seen] == [9, 9, 9]
        got = box.receive()
        del array, seen
        assert got[7] == 9
        del got
    assert usage(home, sender) == before


@pytest.mark.parametrize(("tags", "error"), [((0, 5), ValueError), ((6, 5), ValueError), (5, TypeError)])
def test_a_range_that_cannot_be_is_refused(box: Mailbox, tags: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        box.receive_message(tags=tags, timeout=0)
    for priority in (-1, 1024, True, "low"):
        with pytest.raises((ValueError, TypeError)):
            shmipc.send(box, 1, priority=priority)  # type: ignore[arg-type]
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.send(box, 1, kind=shmipc.Kind.CALL, priority=1)
    assert box.count() == 0


def test_several_processes_receive_each_message_once(senders: list[Any], home: shmipc.System) -> None:
    with Mailbox.create(slots=1024) as box:
        for other in senders:
            other.post(box, [(1, n % 7, (other.pid(), n)) for n in range(100)])
        looking = [other.drain.submit(box) for other in senders[1:]]
        while not all(future.done() for future in looking):
            try:
                box.peek(urgent=True)
            except shmipc.MailboxEmpty:
                pass
        lists = [future.result(LIMIT) for future in looking]
    assert len({tuple(one) for found in lists for one in found}) == sum(map(len, lists)) == 300
    for found in lists:
        for pid in {pid for pid, _ in found}:
            for priority in range(7):
                numbers = [n for p, n in found if p == pid and n % 7 == priority]
                assert numbers == sorted(numbers)


@pytest.mark.allows_rescue
@pytest.mark.parametrize("point", ["keep_lease", "block_lock", "aside_link", "aside_free", "right_release"])
def test_message_stays_when_a_process_is_killed_that_looks_at_it(
    senders: list[Any], system: shmipc.System, eventually: Any, point: str
) -> None:
    before = usage(system)
    victim: Any = system.spawn(Sender)
    box = Mailbox.create(slots=64)
    bodies = [bytes([n]) * 5000 for n in range(3)]
    for n, body in enumerate(bodies):
        shmipc.send(box, body, tag=1, priority=2 - n)
    victim.die_looking.cast(box, point, 1)
    assert shmipc.process(victim).join(LIMIT)
    assert shmipc.process(victim).exitcode == -9
    assert box.peek(urgent=True, timeout=LIMIT).body == bodies[2]
    assert [box.receive(LIMIT) for _ in bodies] == bodies
    box.close()
    del victim
    eventually(lambda: usage(system) == before)


def test_urgent_receive_waits_for_the_first_to_come(box: Mailbox, sender: Any) -> None:
    got: list[Any] = []
    waits = threading.Thread(target=lambda: got.append(box.receive_message(urgent=True, tags=(4, 9)).body))
    waits.start()
    sender.post(box, [(1, 0, "other"), (4, 1000, "wanted")])
    waits.join(LIMIT)
    assert got == ["wanted"]
    assert box.receive() == "other"
