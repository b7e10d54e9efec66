"""Receiving by sender, kind and tag: from a process's own mailbox, and from one that stands alone."""

import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import shmipc
from shmipc import ANY, Kind
from shmipc.actor import calls
from shmipc.actor import inbox as own
from tests.actors import Client, Echo
from tests.interruptions import Interruption, broken_off, each_place

KINDS = (Kind.CAST, Kind.REPLY, Kind.TIMER)
TAGS = (5, 6, None)


class Inbox:
    """A mailbox that this process reads: where to send to, and how to receive."""

    def __init__(self, address: Any, receive: Callable[..., shmipc.Message], count: Callable[[], int]) -> None:
        self.address = address
        self.receive = receive
        self.count = count

    def drain(self, **filter: Any) -> list[shmipc.Message]:
        """Every message that matches now, in the order in which they are received."""
        found = []
        while True:
            try:
                found.append(self.receive(**filter, timeout=0))
            except shmipc.MailboxEmpty:
                return found


@pytest.fixture(params=["own", "standing"])
def inbox(request: pytest.FixtureRequest, system: shmipc.System) -> Inbox:
    if request.param == "own":
        return Inbox(shmipc.self(), shmipc.receive, shmipc.pending)
    mailbox = shmipc.Mailbox.create(slots=1024)
    return Inbox(mailbox, mailbox.receive_message, mailbox.count)


def bodies(messages: list[shmipc.Message]) -> list[Any]:
    return [message.body for message in messages]


@pytest.mark.row("A8")
def test_receive_returns_exactly_what_all_set_conditions_match(system: shmipc.System, inbox: Inbox) -> None:
    senders = [system.spawn(Client) for _ in range(3)]
    shuffle = random.Random(8)
    all_messages = list(itertools.product(range(3), KINDS, TAGS))
    for sender, kind, tag in itertools.product((ANY, 0, 1, 2), (ANY, *KINDS), (ANY, *TAGS)):
        shuffle.shuffle(all_messages)
        for message in all_messages:
            senders[message[0]].send(inbox.address, message, message[1], message[2])

        def matches(message: tuple[int, Kind, int | None]) -> bool:
            wanted = (sender, kind, tag)  # noqa: B023
            return all(set in (ANY, value) for set, value in zip(wanted, message, strict=True))

        filter = {"sender": ANY if sender == ANY else senders[sender], "kind": kind, "tag": tag}
        found = inbox.drain(**filter)
        assert bodies(found) == [message for message in all_messages if matches(message)], filter
        for message in found:
            assert message.sender == senders[message.body[0]]
            assert (message.kind, message.tag) == message.body[1:]
        left = [message for message in all_messages if not matches(message)]
        assert inbox.count() == len(left)
        assert bodies(inbox.drain()) == left, filter


@pytest.mark.row("A10")
def test_messages_that_do_not_match_stay_in_order(system: shmipc.System, inbox: Inbox) -> None:
    sender = system.spawn(Client)
    for number in range(1, 11):
        sender.send(inbox.address, number, Kind.CAST, number)
    assert inbox.receive(tag=7, timeout=0).body == 7
    assert inbox.count() == 9
    assert bodies(inbox.drain()) == [1, 2, 3, 4, 5, 6, 8, 9, 10]


class Flood(Client):
    """Sends messages one by one, each a round trip to another process after the one before."""

    def flood(self, to: Any, count: int, tag: int, pace: Any) -> float:
        for number in range(count):
            pace.echo(number)
            shmipc.send(to, number, tag=tag)
        return time.monotonic()


@pytest.mark.row("A12")
def test_receive_sleeps_through_what_does_not_match_until_its_deadline(system: shmipc.System, inbox: Inbox) -> None:
    flood, pace = system.spawn(Flood), system.spawn(Echo)
    flood.flood(inbox.address, 3, 1, pace)  # both know each other now
    assert len(inbox.drain()) == 3
    timeout = 2.0
    started, worked = time.monotonic(), time.thread_time()
    flooded = flood.flood.submit(inbox.address, 1000, 1, pace)
    with pytest.raises(shmipc.Timeout) as caught:
        inbox.receive(tag=2, timeout=timeout)
    ended, worked = time.monotonic(), time.thread_time() - worked
    assert ended - started >= timeout
    assert flooded.result(0) < ended, "all arrived while it waited"
    assert not isinstance(caught.value, shmipc.WouldBlock)
    assert worked < timeout / 4, "asleep between messages"
    assert inbox.count() == 1000
    assert bodies(inbox.drain()) == list(range(1000))


@pytest.mark.row("A12")
def test_receive_wakes_for_the_match_among_what_does_not_match(system: shmipc.System, inbox: Inbox) -> None:
    flood, pace = system.spawn(Flood), system.spawn(Echo)
    flooded = flood.flood.submit(inbox.address, 500, 1, pace)
    matching = flood.send.submit(inbox.address, "match", Kind.CAST, 2)
    after = flood.flood.submit(inbox.address, 500, 1, pace)
    assert inbox.receive(tag=2, timeout=30).body == "match"
    assert [future.result(30) is not None for future in (flooded, after)] == [True, True]
    assert matching.result() is None
    assert inbox.count() == 1000
    assert bodies(inbox.drain()) == [*range(500), *range(500)]


@pytest.mark.row("A13")
def test_timeout_with_a_backlog_leaves_exactly_the_backlog(system: shmipc.System, inbox: Inbox) -> None:
    system.spawn(Client).send_numbers(inbox.address, 5, 3)
    started = time.monotonic()
    with pytest.raises(shmipc.Timeout) as caught:
        inbox.receive(tag=4, timeout=0.05)
    assert time.monotonic() - started >= 0.05
    assert isinstance(caught.value, TimeoutError)
    assert not isinstance(caught.value, shmipc.WouldBlock)
    assert inbox.count() == 5
    found = inbox.drain()
    assert [(message.kind, message.tag, message.body) for message in found] == [(Kind.CAST, 3, n) for n in range(5)]
    assert inbox.count() == 0
    for kind in (ANY, Kind.TIMER, Kind.EXIT):
        with pytest.raises(shmipc.MailboxEmpty):
            inbox.receive(kind=kind, timeout=0)


class LateSender(Client):
    """Sends a while after it was asked."""

    def send_after(self, to: Any, seconds: float) -> None:
        asked = time.monotonic()
        threading.Event().wait(seconds)
        shmipc.send(to, (asked, time.monotonic()))


@pytest.mark.row("A16")
def test_receive_polls_at_zero_waits_for_a_limit_and_waits_for_ever_without(
    system: shmipc.System, inbox: Inbox
) -> None:
    helper = system.spawn(LateSender)
    started = time.monotonic()
    with pytest.raises(shmipc.WouldBlock):
        inbox.receive(timeout=0)
    assert time.monotonic() - started < 0.2

    started = time.monotonic()
    with pytest.raises(shmipc.Timeout) as caught:
        inbox.receive(timeout=0.1)
    elapsed = time.monotonic() - started
    assert 0.1 <= elapsed < 1.0
    assert not isinstance(caught.value, shmipc.WouldBlock)

    helper.send_after.cast(inbox.address, 0.2)
    asked, sent = inbox.receive(timeout=None).body
    assert sent - asked >= 0.2
    assert 0 <= time.monotonic() - sent < 2.0
    with pytest.raises(shmipc.WouldBlock):
        inbox.receive(timeout=0)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_receive_refuses_a_timeout_that_is_no_time(inbox: Inbox, timeout: float) -> None:
    with pytest.raises(shmipc.InvalidArgument):
        inbox.receive(timeout=timeout)


@pytest.mark.row("A17")
def test_an_empty_message_is_a_message(system: shmipc.System, inbox: Inbox) -> None:
    system.spawn(Client).send(inbox.address, b"")
    assert inbox.count() == 1
    body = inbox.receive(timeout=10).body
    assert type(body) is bytes
    assert len(body) == 0
    with pytest.raises(shmipc.WouldBlock):
        inbox.receive(timeout=0)


@pytest.mark.parametrize(
    ("condition", "error"),
    [
        ({"kind": 6}, shmipc.InvalidArgument),
        ({"kind": 32}, shmipc.InvalidArgument),
        ({"kind": -5}, shmipc.InvalidArgument),
        ({"kind": "CAST"}, TypeError),
        ({"kind": True}, TypeError),
        ({"tag": 0}, shmipc.InvalidArgument),
        ({"tag": -7}, shmipc.InvalidArgument),
        ({"tag": 2**61}, shmipc.InvalidArgument),
        ({"tag": 2**64 - 1}, shmipc.InvalidArgument),
        ({"tag": 2**70}, shmipc.InvalidArgument),
        ({"tag": 1.0}, TypeError),
        ({"sender": 5}, TypeError),
        ({"sender": "me"}, TypeError),
    ],
)
def test_filter_that_no_message_can_match_is_refused_and_takes_nothing(
    system: shmipc.System, condition: dict[str, Any], error: type[Exception]
) -> None:
    shmipc.send(shmipc.self(), "cast", tag=3)
    with shmipc.Mailbox.create(slots=4) as box:
        box.send("cast")
        with pytest.raises(error):
            shmipc.receive(timeout=0, **condition)
        with pytest.raises(error):
            box.receive_message(timeout=0, **condition)
        assert box.count() == shmipc.pending() == 1


@pytest.mark.parametrize("how", ["plain", "tag", "several"])
def test_what_a_signal_handler_raises_carries_what_the_receive_had_taken(system: shmipc.System, how: str) -> None:
    found: list[Any] = []

    def receive() -> None:
        try:
            if how == "several":
                message = shmipc.receive_matching([(ANY, ANY, 4), (ANY, ANY, 3)], 0)[1]
            else:
                message = shmipc.receive(tag=3 if how == "tag" else ANY, timeout=0)
        except Interruption as error:
            found.extend([error.message.body] if hasattr(error, "message") else [])
            raise
        found.append(message.body)

    shmipc.send(shmipc.self(), "a", tag=3)
    carried = 0
    for places in each_place(receive, own, calls):
        assert shmipc.pending() == 1 - len(found), places
        carried += len(found)
        if not found:
            receive()
        assert found == ["a"], places
        found.clear()
        shmipc.send(shmipc.self(), "a", tag=3)
    assert 0 < carried < places


def serve_broken(box: shmipc.Mailbox) -> None:
    while own.membership.current().box.depth() == 0:
        time.sleep(0.001)
    for number in range(1, 100):
        try:
            if not broken_off(number, lambda: shmipc.receive(timeout=0), own, calls):
                break
        except shmipc.Closed:
            break
        except shmipc.MailboxEmpty:
            break
    try:
        shmipc.receive(timeout=20)
    except shmipc.Closed:
        box.send("told")


def test_order_to_stop_is_heeded_though_the_receive_that_took_it_is_broken_off(system: shmipc.System) -> None:
    with shmipc.Mailbox.create() as box:
        ref = system.spawn(serve_broken, box)
        assert shmipc.process(ref).stop(20.0)
        assert box.receive(timeout=20.0) == "told"
