"""Bits, offers and rendezvous under their neutral names: what the facades do not ask for."""

import threading
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc import Kind
from tests.actors import Actor, outcome

LIMIT = 20.0  # seconds; a watchdog


class Told(Actor):
    def __init__(self) -> None:
        self.got: list[tuple[Any, Any, Any]] = []

    def on_message(self, message: shmipc.Message) -> None:
        self.got.append((message.kind, message.sender, message.body))

    def heard(self) -> list[tuple[Any, Any, Any]]:
        return self.got

    def meet(self, to: Any, body: Any, timeout: float | None = None) -> str:
        return outcome(lambda: shmipc.rendezvous(to, body, timeout=timeout))

    def offer(self, to: Any, body: Any) -> None:
        shmipc.offer(to, body)


def test_bits_offers_and_rendezvous_between_actors(system: shmipc.System, eventually: Any) -> None:
    told: Any = system.options(name="told").spawn(Told)
    me = shmipc.self()
    # The loop of an actor gets bits and rendezvous as messages.
    shmipc.notify(told, 5)
    shmipc.rendezvous("told", {"any": "object"}, tag=7)
    eventually(lambda: len(told.heard()) == 2)
    assert told.heard() == [(Kind.NOTIFY, None, 5), (Kind.CAST, me, {"any": "object"})]
    # A receive with conditions leaves bits; one of their kind, and an open one, get them.
    shmipc.notify(me, 1 << 40)
    for conditions in ({"sender": told}, {"kind": Kind.CAST}, {"tag": None}, {"tag": 5}, {"kind": Kind.EXIT}):
        with pytest.raises(shmipc.MailboxEmpty):
            shmipc.receive(timeout=0, **conditions)
    shmipc.send(me, "later")
    message = shmipc.receive(timeout=0)
    assert (message.kind, message.sender, message.tag, message.body) == (Kind.NOTIFY, None, None, 1 << 40)
    assert not message.is_call
    assert shmipc.receive(timeout=0).body == "later"
    shmipc.notify(me, 3)
    assert shmipc.receive_matching([(told, Kind.CAST, 5), (shmipc.ANY, Kind.NOTIFY, shmipc.ANY)])[0] == 1
    for wrong, error in ((0, ValueError), (1 << 64, ValueError), (-1, ValueError), (True, TypeError), ("1", TypeError)):
        with pytest.raises(error):
            shmipc.notify(me, wrong)  # type: ignore[arg-type]
    # An offer is any object; an array travels as a handle.
    frame = shmipc.zeros((500, 500))
    frame[:] = 7
    shmipc.offer(told, "recalled")
    assert shmipc.offered(told) == 1
    assert shmipc.recall(told) == "recalled"
    assert outcome(lambda: shmipc.recall(told)) == "MailboxEmpty"
    told.offer(me, frame)
    assert shmipc.offers() == [told]
    got = shmipc.pull(told)
    assert not got.flags.writeable
    assert np.array_equal(got, frame)
    assert outcome(lambda: shmipc.offer(me, lambda: None)) == "done", "code, and to oneself"
    assert shmipc.pull(me)() is None
    shmipc.receive(kind=Kind.NOTIFY, timeout=0)
    # A rendezvous that is given up is not received.
    met = told.meet.submit(me, "given up", 0.05)
    assert met.result(LIMIT) == "Timeout"
    assert outcome(lambda: shmipc.receive(timeout=0)) == "MailboxEmpty"
    assert outcome(lambda: shmipc.rendezvous(me, 1)) == "InvalidArgument"
    eventually(lambda: outcome(lambda: shmipc.rendezvous(told, 1, timeout=0)) == "done")  # once its loop waits again
    # Two that meet each other without limits.
    told.meet.cast(me, "first")
    eventually(lambda: shmipc.pending() == 1)
    assert outcome(lambda: shmipc.rendezvous(told, "second", timeout=0.2)) == "Timeout"
    assert shmipc.receive(timeout=LIMIT).body == "first"


def test_mailboxes_that_stand_alone_have_bits_and_rendezvous(system: shmipc.System) -> None:
    box = shmipc.Mailbox.create(slots=1)
    assert outcome(lambda: shmipc.rendezvous(box, "nobody waits", timeout=0)) == "WouldBlock"
    assert len(box) == 0
    met: list[str] = []
    meets = threading.Thread(target=lambda: met.append(outcome(lambda: shmipc.rendezvous(box, "body"))))
    meets.start()
    meets.join(0.05)
    assert meets.is_alive()
    shmipc.notify(box, 9)
    assert box.receive(timeout=LIMIT) == 9
    assert box.receive(timeout=LIMIT) == "body"
    meets.join(LIMIT)
    assert met == ["done"]
    assert outcome(lambda: shmipc.offer(box, 1)) == "InvalidArgument"
    with shmipc.Mailbox.create(message_bytes=8) as fixed:
        assert outcome(lambda: shmipc.notify(fixed, 1)) == "NotSupported"
    # Full of what it declines: a receive of bits alone does not starve.
    box.send("full")
    threading.Timer(0.05, lambda: shmipc.notify(box, 2)).start()
    assert box.receive_message(kind=Kind.NOTIFY, timeout=LIMIT).body == 2
    assert outcome(lambda: box.receive_message(tag=5)) == "Starved"
    box.close()
    assert outcome(lambda: shmipc.notify(box, 1)) == "Closed"
