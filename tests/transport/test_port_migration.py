"""Ports that change their owner: what moves along, who is told, and who notices nothing."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

import shmipc
from shmipc import Port, PortGroup, _native
from tests.actors import Actor
from tests.transport.hosts import Host, Wait


@pytest.fixture(autouse=True, scope="module")
def world() -> Iterator[tuple[shmipc.System, Any, Any, Any]]:
    with shmipc.System() as system:
        yield system, system.spawn(Host), system.spawn(Host), system.spawn(Host)


def receive_until_it_moves(port: Port) -> list[int]:
    """What its owner gets before the port is another's."""
    found = []
    while True:
        try:
            found.append(port.receive(20.0).body)
        except shmipc.NoPort:
            return found


@pytest.mark.row("D15")
def test_messages_move_along_in_order_while_others_send(world: Any, rounds: Any) -> None:
    total = rounds(50_000, 6_000)
    system = world[0]
    catchers = [world[1], world[2]]
    port = Port.create(128)
    identity, local = port.id, port.local
    sender = world[3].begin("stream", port, total, 50)
    found: list[int] = []
    hops = 0
    while len(found) < total:
        share = total // 20
        found += [port.receive(20.0).body for _ in range(min(share, total - len(found)))]
        if len(found) == total:
            break
        to = catchers[hops % 2]
        number, there = port.migrate(to)
        assert number == share + 1
        to.know("moved", port)
        assert to.local("moved") == there
        assert port.id == identity
        found += [body for body, _ in to.take_numbers("moved")]
        back = to.migrate("moved", shmipc.self())
        assert back[1] != local
        hops += 1
    assert found == list(range(total))
    assert hops >= 5
    assert world[3].end(sender)[0] == total
    port.delete()
    port.close()
    assert not system.closed


@pytest.mark.row("D16", "D17")
def test_without_messages_nothing_moves_but_the_port(world: Any, eventually: Any) -> None:
    _, one, other, third = world
    port = one.make("dropped")
    with PortGroup.create() as group:
        group.insert(port)
        assert one.enable("dropped", 1) is None
        for number in range(5):
            port.send(number)
        waits = [third.begin("call", port, "a"), third.begin("call", port, "b")]
        eventually(lambda: len(port) == 7)
        began = time.monotonic()
        assert one.migrate("dropped", other, False)[0] == 1
        for wait in waits:
            assert third.end(wait)[0] == "Closed"
        assert time.monotonic() - began < 10.0
        other.know("dropped", port)
        assert other.take("dropped") == "MailboxEmpty"
        # it is disabled, and has kept its place in the group
        assert group.broadcast("to the group").delivered == (port.id,)
        assert other.take_any() == "MailboxEmpty"
        assert one.take_any() == "MailboxEmpty"
        assert one.take("dropped") == "NoPort"
        assert other.enable("dropped", 1) is None
        assert other.take_any() == ("dropped", "to the group")
    assert other.delete("dropped") is None


@pytest.mark.row("D17")
def test_migration_disables_and_keeps_the_messages(world: Any) -> None:
    _, one, other, _ = world
    port = one.make("kept")
    with PortGroup.create() as group:
        group.insert(port)
        assert one.enable("kept", 1) is None
        port.send("before")
        one.migrate("kept", other)
        other.know("kept", port)
        assert other.take_any() == "MailboxEmpty"
        assert other.enable("kept", 1) is None
        assert other.take_any() == ("kept", "before")
        assert group.send("by the group") == port.id
        assert other.take_any() == ("kept", "by the group")
    assert other.delete("kept") is None


@pytest.mark.row("D18")
@pytest.mark.parametrize("messages", [True, False])
def test_who_waits_at_the_old_owner_is_told(world: Any, messages: bool) -> None:
    _, one, other, _ = world
    port = one.make("left")
    waits = [one.begin_to_wait("take", "left", 20.0), one.begin("take_any", 0.5)]
    assert one.enable("left") is None
    began = time.monotonic()
    one.migrate("left", other, messages)
    assert one.end(waits[0])[0] == "NoPort"
    assert time.monotonic() - began < 10.0
    port.send("there")
    assert one.end(waits[1])[0] == "Timeout"
    other.know("left", port)
    assert other.take("left") == "there"
    assert other.delete("left") is None


@pytest.mark.row("D19")
def test_replies_find_their_caller_across_a_migration(world: Any, eventually: Any) -> None:
    _, one, other, third = world
    port = one.make("calls")
    received = third.begin("call", port, "received before")
    assert one.hold("calls") == "received before"
    queued = third.begin("call", port, "queued")
    eventually(lambda: len(port) == 1)
    one.migrate("calls", other)
    other.know("calls", port)
    assert other.hold("calls") == "queued"
    assert other.answer("calls", "by the new") is None
    assert one.answer("calls", "by the old") is None
    assert third.end(queued)[0] == "by the new"
    assert third.end(received)[0] == "by the old"
    assert other.delete("calls") is None


def test_migration_is_refused_where_it_cannot_be(world: Any, system: shmipc.System) -> None:
    guest = system.spawn(Host)
    port = Port.create(system=system)
    with pytest.raises(shmipc.InvalidArgument):
        port.migrate(shmipc.self())
    shmipc.process(guest).kill()
    shmipc.process(guest).join(10.0)
    with pytest.raises(shmipc.PeerDead):
        port.migrate(guest)
    port.send("stays")
    assert port.receive(0).body == "stays"
    with pytest.raises(shmipc.PeerDead):
        Port.create(owner=guest)
    port.delete()
    with pytest.raises(shmipc.NoPort):
        port.migrate(guest)
    port.close()


def test_migration_while_the_owner_receives_loses_nothing(world: Any) -> None:
    _, one, _, third = world
    total = 2_000
    port = Port.create(64)
    sender = third.begin("stream", port, total)
    wait = Wait(lambda: receive_until_it_moves(port))
    while port.received < 100:
        time.sleep(0.0005)
    port.migrate(one)
    before = wait.end()[0]
    one.know("rest", port)
    after: list[int] = []
    while len(before) + len(after) < total:
        after += [body for body, _ in one.take_numbers("rest")]
    assert before + after == list(range(total))
    assert third.end(sender)[0] == total
    assert one.delete("rest") is None
    port.close()


POINTS = ["port_move", "port_moved", "port_commit", "right_release", "right_flight", "right_released", "right_take"]
POINTS += ["port_empty"]  # of the kills of the gate some are before the commit, and some after


@pytest.mark.timeout(600)
@pytest.mark.row("D15", "D20")
def test_every_message_arrives_or_is_counted_in_rounds_of_migration_with_kills(
    system: shmipc.System, rounds: Any, eventually: Any
) -> None:
    """The owner is killed in the midst of each twentieth migration: the port is his heir's, whole, or gone."""
    total, each = rounds(1_000, 60), 20
    kills = total // each
    sender = system.spawn(Host)
    done, whole = 0, 0
    port: Port | None = None
    for number in range(kills):
        victim = system.spawn(Host)
        if port is None:
            port, found, before = Port.create(64), [], system.statistics().undelivered
            sending = sender.begin("stream_until_gone", port)
        victim.know("moved", port)
        for _ in range(each // 2):
            found += [port.receive(20.0).body for _ in range(5)]
            port.migrate(victim)
            found += victim.take_some("moved", 5)
            done += 2
            if done % each:
                assert isinstance(victim.migrate("moved", shmipc.self()), tuple)
        victim.die_while_migrating.cast("moved", shmipc.self(), POINTS[number % len(POINTS)])
        assert shmipc.process(victim).join(20.0)
        eventually(lambda p=port: not p.is_there or p.owner == shmipc.self())
        if port.is_there and number + 1 < kills:
            whole += 1
            continue
        if port.is_there:
            whole += 1
            port.delete()
        sent = sender.end(sending)[0]
        assert found == list(range(len(found)))
        lost = sent - len(found) + before
        eventually(lambda n=lost: system.statistics().undelivered == n)
        port.close()
        port = None
    assert done == total
    assert 0 < whole < kills


class Passer(Actor):
    """Gives ports away, and ends."""

    def make(self, count: int, enabled: bool = False) -> Port:
        self.port = Port.create()
        if enabled:
            self.port.enable()
        for number in range(count):
            self.port.send(number)
        return self.port

    def pass_on(self, port: Port, to: Any, point: str = "") -> Any:
        if point:
            _native.kill_point_arm(point, 1, signal.SIGSTOP)
        return port.migrate(to)

    def take(self, port: Port) -> list[Any]:
        return [port.receive(0).body for _ in range(len(port))]

    def drop(self) -> None:
        self.port.close()
        del self.port

    def leave(self) -> None:
        raise SystemExit(0)


@pytest.mark.row("D15", "D17", "D20")
@pytest.mark.allows_rescue
def test_port_that_its_new_owner_has_passed_on_outlives_him(system: shmipc.System, eventually: Any) -> None:
    """Who gave it to him was stopped before he looked whether he lives."""
    first, second, third = (system.spawn(Passer) for _ in range(3))
    port, pid = first.make(5), first.pid()
    moved = first.pass_on.submit(port, second, "port_moved")
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    second.pass_on(port, third)
    second.leave.cast()
    assert shmipc.process(second).join(20.0)
    os.kill(pid, signal.SIGCONT)
    assert moved.result(20.0) == (1, 1)
    assert port.owner == third
    assert third.take(port) == list(range(5))


@pytest.mark.row("D15", "D20")
@pytest.mark.allows_rescue
@pytest.mark.parametrize("point", ["port_commit", "port_moved"])
def test_end_of_the_new_owner_on_the_way_is_told_and_nothing_of_the_port_stays(
    system: shmipc.System, eventually: Any, point: str
) -> None:
    first: Any = system.spawn(Passer)
    pid = first.pid()
    used = []
    for _ in range(3):
        second: Any = system.spawn(Passer)
        port = first.make(2, True)
        moved = first.pass_on.submit(port, second, point)
        eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        os.kill(shmipc.process(second).pid, signal.SIGKILL)
        assert shmipc.process(second).join(20.0)
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(shmipc.PeerDead):
            moved.result(20.0)
        assert not port.is_there
        port.close()
        first.drop()
        used.append(system.statistics().mailboxes)
    assert used[1:] == used[:1] * 2
