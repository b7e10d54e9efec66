"""A full mailbox: the sender fails, waits, or waits until a deadline, as each call asks; fair among those who wait."""

import os
import signal
import time
from typing import Any

import pytest

import shmipc
from tests.actors import Client

LIMIT = 10.0  # seconds; a watchdog


class Sender(Client):
    """Waits for room, and says when it had it."""

    def send_one(self, to: Any, body: Any, timeout: float | None) -> float:
        shmipc.send(to, body, timeout=timeout)
        return time.monotonic()


def is_waiting(system: shmipc.System, ref: Any) -> bool:
    """Is a thread of that process parked?"""
    return "waits for room" in system._membership.member.whereabouts(ref._shm.id)


@pytest.mark.row("K14")
def test_full_mailbox_fails_blocks_or_blocks_until_a_deadline(system: shmipc.System, eventually: Any) -> None:
    box = shmipc.Mailbox.create(slots=4)
    for number in range(4):
        box.send(number)
    started = time.monotonic()
    with pytest.raises(shmipc.MailboxFull) as full:
        shmipc.send(box, "at once", timeout=0)
    assert time.monotonic() - started < 0.5
    assert full.value.message == "at once"
    started = time.monotonic()
    with pytest.raises(shmipc.Timeout) as late:
        shmipc.send(box, "in time", timeout=0.1)
    assert 0.1 <= time.monotonic() - started < LIMIT
    assert late.value.message == "in time"
    assert box.count() == 4
    sender: Any = system.spawn(Sender)
    sent = sender.send_one.submit(box, "waits", None)
    eventually(lambda: is_waiting(system, sender))
    assert not sent.done()
    received = time.monotonic()
    assert box.receive() == 0
    assert sent.result(LIMIT) >= received
    assert [box.receive(timeout=0) for _ in range(4)] == [1, 2, 3, "waits"]


@pytest.mark.row("K14")
def test_senders_that_wait_are_served_in_order_and_a_killed_one_is_passed_by(
    system: shmipc.System, eventually: Any
) -> None:
    box = shmipc.Mailbox.create(slots=1)
    box.send("first")
    senders: list[Any] = [system.spawn(Sender) for _ in range(5)]
    sent = []
    for number, sender in enumerate(senders):
        sent.append(sender.send_one.submit(box, number, None))
        eventually(lambda: is_waiting(system, sender))  # noqa: B023
    for dead in (0, 2):
        os.kill(shmipc.process(senders[dead]).pid, signal.SIGKILL)
        with pytest.raises(shmipc.PeerDead):
            sent[dead].result(LIMIT)
    for before, number, later in (("first", 1, (3, 4)), (1, 3, (4,)), (3, 4, ())):
        assert box.receive(timeout=LIMIT) == before
        sent[number].result(LIMIT)  # its message is in
        assert not any(sent[other].done() for other in later)
    assert box.receive(timeout=LIMIT) == 4
    with pytest.raises(shmipc.MailboxEmpty):
        box.receive(timeout=0)
