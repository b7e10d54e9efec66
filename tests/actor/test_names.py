"""Names: unique, their owner's to take away, gone with it; and a name as an address."""

import os
import pickle
import signal
import time
from typing import Any

import pytest

import shmipc
from shmipc import Kind
from shmipc.actor.named import NamedRef
from tests.actors import Actor, Client, outcome

LIMIT = 10.0  # seconds; ten times the row's


class Named(Actor):
    """Serves a name, and answers with who it is."""

    def __init__(self, answer: str = "") -> None:
        self.answer = answer

    def serve(self, name: str, ref: Any = None) -> str:
        return outcome(lambda: shmipc.System.current().serve(name, ref or shmipc.self()))

    def withdraw(self, name: str) -> str:
        return outcome(lambda: shmipc.System.current().withdraw(name))

    def on_message(self, message: shmipc.Message) -> None:
        if message.kind == Kind.CALL:
            shmipc.reply(message, (self.answer, message.body))

    def send(self, name: str, body: Any) -> int | None:
        return shmipc.send(name, body, tag=3)


def test_named_ref_follows_the_name_and_is_no_other_ref(system: shmipc.System) -> None:
    first, second = (system.spawn(Named, answer) for answer in ("first", "second"))
    ref: Any = NamedRef(system.name, "service")
    system.serve("service", first)
    assert shmipc.call(ref, 1, timeout=LIMIT) == ("first", 1)
    system.withdraw("service")
    with pytest.raises(shmipc.NotFound):
        shmipc.send(ref, 1)
    assert [ref == first, first == ref, ref in [first], first in {ref: 1}] == [False] * 4
    system.serve("service", second)
    assert shmipc.call(ref, 2, timeout=LIMIT) == ("second", 2)
    assert [ref == second, second == ref, ref == NamedRef(system.name, "service")] == [False, False, True]
    watch = shmipc.monitor(ref)
    system.withdraw("service")
    assert watch.cancel(), "it is of the process, whoever has the name"
    system.serve("service", first)
    others = shmipc.monitor(ref)
    system.withdraw("service")
    system.serve("service", second)
    shmipc.monitor(ref)
    assert others.cancel()
    with pytest.raises(shmipc.InvalidArgument, match="monitored already"):
        shmipc.monitor(second)
    shmipc.process(second).kill()
    with pytest.raises(shmipc.PeerDead):
        shmipc.call(ref, 3, timeout=LIMIT)
    shmipc.process(second).join(LIMIT)
    with pytest.raises(shmipc.PeerDead):
        shmipc.send(ref, 4)


@pytest.mark.row("K7")
def test_name_is_one_owner_s_until_it_dies_and_then_the_next_one_s(system: shmipc.System) -> None:
    first, second, third = (system.spawn(Named, answer) for answer in ("first", "second", "third"))
    one: Any = first
    other: Any = second
    outsider: Any = third
    assert one.serve("name") == "done"
    assert other.serve("name") == "NameTaken"
    assert system.lookup("name") == first
    assert shmipc.call("name", 1) == ("first", 1)
    assert outsider.withdraw("name") == "AccessDenied"
    assert shmipc.call("name", 2) == ("first", 2)
    killed = time.monotonic()
    os.kill(shmipc.process(first).pid, signal.SIGKILL)
    while other.serve("name") != "done":
        assert time.monotonic() - killed < LIMIT
    assert system.lookup("name") == second
    assert shmipc.call("name", 3) == ("second", 3)
    assert other.withdraw("name") == "done"
    with pytest.raises(shmipc.NotFound):
        system.lookup("name")
    with pytest.raises(shmipc.NotFound):
        shmipc.send("name", 4)
    with pytest.raises(shmipc.NotFound):
        shmipc.call("name", 4)
    assert outsider.serve("name") == "done"
    assert shmipc.call("name", 5) == ("third", 5), "a name that moved while its owner lived"


@pytest.mark.row("K7")
def test_who_gave_a_name_may_take_it_away_too(system: shmipc.System) -> None:
    named: Any = system.spawn(Named)
    other: Any = system.spawn(Named)
    system.serve("name", named)
    assert other.withdraw("name") == "AccessDenied"
    system.withdraw("name")
    system.serve("name", named)
    assert named.withdraw("name") == "done"
    with pytest.raises(shmipc.NotFound):
        system.withdraw("name")


def test_messages_to_a_name_reach_actors_and_mailboxes(system: shmipc.System) -> None:
    client: Any = system.spawn(Named)
    system.serve("me", shmipc.self())
    assert client.send("me", "hello") == 3
    message = shmipc.receive(timeout=LIMIT)
    assert (message.sender, message.tag, message.body) == (client, 3, "hello")
    with shmipc.Mailbox.create("box", slots=2) as box:
        assert client.send("box", "hello") == 3
        assert shmipc.send("box", "two", timeout=0) is None
        with pytest.raises(shmipc.MailboxFull):
            shmipc.send("box", "three", timeout=0)
        assert box.receive_many() == ["hello", "two"]
    timer = shmipc.send_after(0, "me", "tick")
    assert shmipc.receive(tag=timer.id, timeout=LIMIT).body == "tick"
    for wrong in ("", "a b", "x" * 65):
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.send(wrong, "body")


def test_lookup_waits_for_a_name_and_no_longer(system: shmipc.System) -> None:
    client: Any = system.spawn(Named)
    started = time.monotonic()
    with pytest.raises(shmipc.NotFound):
        system.lookup("late", timeout=0.05)
    assert time.monotonic() - started >= 0.05
    client.serve.cast("late")
    assert system.lookup("late", timeout=LIMIT) == client
    other = system.spawn(Client)
    assert client.serve("other", other) == "done"
    assert system.lookup("other") == other


class Later(Named):
    def later(self) -> str:
        return "later"


def test_ref_of_a_system_made_anew_is_of_its_own_actor() -> None:
    for kind, method in ((Named, "withdraw"), (Later, "later")):
        with shmipc.System("anew") as made:
            made.options(name="service").spawn(kind)
            found = made.lookup("service", timeout=LIMIT)
            assert hasattr(found, method), found


def test_ref_and_mailbox_of_a_former_system_mean_nothing_in_a_later_one() -> None:
    kept: list[bytes] = []
    refs: list[Any] = []
    for _ in range(2):
        with shmipc.System("anew") as made:
            ref = made.spawn(Later)
            box = shmipc.Mailbox.create()
            if not kept:
                kept = [pickle.dumps(ref), pickle.dumps(box)]
                refs = [ref]
                continue
            old = pickle.loads(kept[0])
            assert old == refs[0] != ref
            assert len({old, ref}) == 2
            with pytest.raises(shmipc.PeerDead):
                old.later()
            with pytest.raises(shmipc.PeerDead):
                shmipc.send(old, "to whom?")
            with pytest.raises(shmipc.ShmipcError):
                pickle.loads(kept[1]).send("to whom?")
            assert box.count() == 0
