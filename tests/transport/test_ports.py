"""Ports: their identity, who receives from them, in which order, and what becomes of those who wait."""

import gc
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc import Port, PortGroup
from shmipc.actor import ports
from shmipc.facades import chorus
from shmipc.transport.mailboxes import ring_header
from tests.actors import usage
from tests.transport.hosts import Host, Wait, told


@pytest.fixture(autouse=True, scope="module")
def world() -> Iterator[tuple[shmipc.System, Any, Any]]:
    with shmipc.System() as system:
        yield system, system.spawn(Host), system.spawn(Host)


@pytest.fixture
def one(world: Any) -> Any:
    return world[1]


@pytest.fixture
def other(world: Any) -> Any:
    return world[2]


@pytest.fixture
def own() -> Iterator[Callable[..., Port]]:
    """`own(slots=64, ...)`: a port of this process, deleted afterwards."""
    made: list[Port] = []

    def make(*args: Any, **options: Any) -> Port:
        made.append(Port.create(*args, **options))
        return made[-1]

    yield make
    for port in made:
        told(port.delete)
        port.close()


def numbers(port: Port) -> list[Any]:
    found = []
    while len(port):
        found.append(port.receive(0).body)
    return found


@pytest.mark.row("D1", "D2")
def test_port_is_made_for_any_actor_and_is_disabled_and_empty(world: Any, own: Any, one: Any) -> None:
    mine, another = own(), own()
    theirs = Port.create(owner=one)
    assert len({mine.id, another.id, theirs.id}) == 3
    assert mine.local != another.local
    assert theirs.owner == one
    assert mine.owner == shmipc.self()
    assert [len(port) for port in (mine, another, theirs)] == [0, 0, 0]
    assert [port.priority for port in (mine, another, theirs)] == [None, None, None]
    for port in (mine, theirs):
        port.send("x")
    with pytest.raises(shmipc.WouldBlock):
        shmipc.receive_any(0)
    one.know("theirs", theirs)
    assert one.take_any() == "MailboxEmpty"
    assert one.take("theirs") == "x"
    assert mine.receive(0).body == "x"
    # who does not own it does not receive from it, enable it or delete it
    for action in (lambda: theirs.receive(0), theirs.enable, theirs.disable, theirs.delete):
        with pytest.raises(shmipc.NoPort):
            action()
    assert one.delete("theirs") is None


@pytest.mark.row("D3", "D4")
def test_default_port_is_there_and_protected(one: Any, other: Any) -> None:
    default = Port.default(one)
    assert default == Port.default(one) == one.make_default()
    assert default.owner == one
    assert default != Port.default(other)
    default.send("first")
    assert one.take_any() == "MailboxEmpty"
    assert one.take("default") == "first"
    default.send("second")
    assert one.enable("default") is None
    assert one.take_any() == ("default", "second")
    assert one.disable("default") is None
    for refused in (one.delete("default"), one.migrate("default", other), one.migrate("default", other, False)):
        assert refused == "InvalidArgument"
    default.send("third")
    assert one.take("default") == "third"


@pytest.mark.row("D5", "D6")
def test_receive_any_takes_the_oldest_of_the_most_urgent(own: Any) -> None:
    low, high, middle = own(), own(), own()
    for port, priority in ((low, 5), (high, 1), (middle, 3)):
        port.enable(priority)
    for number in range(2):
        for port in (low, middle, high):
            port.send(number)
    order = [shmipc.receive_any(0) for _ in range(6)]
    assert [(port, message.body) for port, message in order] == [
        (port, number) for port in (high, middle, low) for number in range(2)
    ]
    # of two as urgent, the one whose oldest came first
    middle.enable(5)
    for number in range(10):
        (low if number % 3 else middle).send(number)
    assert [shmipc.receive_any(0)[1].body for _ in range(10)] == list(range(10))
    # within the port first in, first out, before all of the other
    for number in range(1, 21):
        low.send(100 + number)
        high.send(number)
    found = [shmipc.receive_any(0)[1].body for _ in range(40)]
    assert found == [*range(1, 21), *range(101, 121)]
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive_any(0)


@pytest.mark.row("D7", "D8", "D9", "D10", "D11")
def test_waits_for_any_port_follow_what_is_enabled(one: Any) -> None:
    first, second, third = (one.make(name) for name in ("first", "second", "third"))

    # D11: with none enabled it waits, and its timeout holds
    result, took = one.end(one.begin("take_any", 0.1))
    assert result == "Timeout"
    assert took >= 0.1
    wait = one.begin_to_wait("take_any", 20.0)
    assert one.enable("first", 4) is None
    first.send("enabled meanwhile")
    assert one.end(wait)[0] == ("first", "enabled meanwhile")

    # D7: the first arrival at any of them
    assert one.enable("second", 5) is None
    wait = one.begin_to_wait("take_any", 20.0)
    second.send("arrives")
    assert one.end(wait)[0] == ("second", "arrives")

    # D8: one that has something is enabled
    third.send("was there")
    wait = one.begin_to_wait("take_any", 20.0)
    assert one.enable("third", 1) is None
    assert one.end(wait)[0] == ("third", "was there")

    # D9: one that is disabled wakes nobody, and keeps what it gets
    wait = one.begin_to_wait("take_any", 20.0)
    assert one.disable("third") is None
    third.send("kept")
    time.sleep(0.2)
    assert one.waits_still(wait)
    assert one.take("third") == "kept"
    first.send("ends it")
    assert one.end(wait)[0] == ("first", "ends it")

    # D10: another priority counts from now on
    assert (one.enable("first", 1), one.enable("second", 2)) == (None, None)
    first.send("a")
    second.send("b")
    assert one.enable("first", 3) is None
    assert one.take_any() == ("second", "b")
    assert one.take_any() == ("first", "a")
    for name in ("first", "second", "third"):
        assert one.delete(name) is None


@pytest.mark.row("D12")
def test_direct_receivers_and_those_of_any_get_each_message_once(own: Any, one: Any, rounds: Any) -> None:
    total = rounds(100_000, 8_000)
    port = own(256)
    port.enable(1)

    def directly() -> list[int]:
        found = []
        while (body := port.receive(20.0).body) is not None:
            found.append(body)
        return found

    def of_any() -> list[int]:
        found = []
        while (body := shmipc.receive_any(20.0)[1].body) is not None:
            found.append(body)
        return found

    waits = [Wait(directly), Wait(of_any)]
    assert one.stream(port, total) == total
    for wait in waits:
        while wait.took is None:
            told(lambda: port.send(None, 0))
            wait.thread.join(0.01)
    parts = [wait.end()[0] for wait in waits]
    assert all(part == sorted(part) for part in parts)
    assert sorted(parts[0] + parts[1]) == list(range(total))


@pytest.mark.row("D13")
def test_delete_tells_all_who_wait(world: Any, one: Any, other: Any, eventually: Any) -> None:
    system = world[0]
    before = usage(system, one, other)
    port = one.make("busy")
    in_service = other.begin("call", port, "served")
    assert one.hold("busy") == "served"
    waiter = one.begin_to_wait("take", "busy", 20.0)
    port.send("for the waiter")
    assert one.end(waiter)[0] == "for the waiter"
    queued = other.begin("call", port, "queued")
    eventually(lambda: one.count("busy") == 1)
    for number in range(3):
        port.send(number)
    idle = one.make("idle")
    waiter = one.begin_to_wait("take", "idle", 20.0)
    began = time.monotonic()
    assert (one.delete("busy"), one.delete("idle")) == (None, None)
    for wait in (in_service, queued):
        assert other.end(wait)[0] == "Closed"
    assert one.end(waiter)[0] == "NoPort"
    assert time.monotonic() - began < 10.0  # the row's second, ten times
    assert one.answer("busy", "too late") == "Aborted"
    assert one.take("busy") == "NoPort"
    assert one.delete("busy") == "NoPort"
    for gone in (port, idle):
        with pytest.raises(shmipc.Unreachable):
            gone.send("x")
        gone.close()
    one.forget("busy", "idle")
    after = usage(system, one, other)
    assert after.pop("undelivered") == before.pop("undelivered") + 4  # the casts and the queued request
    assert after == before


@pytest.mark.row("D14")
def test_ids_are_never_used_again(rounds: Any) -> None:
    total = rounds(100_000, 3_000)
    seen = set()
    for _ in range(total):
        with Port.create(1, 8) as port:
            seen.add(port.id)
            port.delete()
    assert len(seen) == total
    with pytest.raises(shmipc.Unreachable):
        Port.open(min(seen))
    with Port.create(1, 8) as port:
        held = Port.open(port.id)
        port.delete()
        assert port.id not in seen
    for action in (lambda: held.send(1), lambda: held.call(1), lambda: held.submit(1), lambda: Port.open(held.id)):
        with pytest.raises(shmipc.Unreachable):
            action()
    held.close()


@pytest.mark.row("D21")
def test_full_port_refuses_sends_and_its_owner_gets_replies(own: Any, one: Any) -> None:
    port = own(3)
    for number in range(3):
        port.send(number, 0)
    with pytest.raises(shmipc.MailboxFull) as full:
        port.send(3, 0)
    assert full.value.message == 3
    with pytest.raises(shmipc.Timeout):
        port.send(3, 0.05)
    # the reply to who owns a full port
    server = one.make("server")
    serving = one.begin("serve", "server", 1)
    assert server.call("asked", 20.0, source=port)[1] == "asked"
    assert one.end(serving)[0] == 1
    assert numbers(port) == [0, 1, 2]
    # who wants to waits for room
    for number in range(3):
        port.send(number, 0)
    wait = Wait(lambda: port.send(3, 20.0)).begun()
    assert port.receive(0).body == 0
    assert wait.end()[0] is None
    assert numbers(port) == [1, 2, 3]
    assert one.delete("server") is None


@pytest.mark.row("D22")
def test_received_messages_are_numbered_for_each_owner(own: Any, one: Any) -> None:
    port = own()
    for body in range(8):
        port.send(body)
    assert [port.receive(0).count for _ in range(3)] == [1, 2, 3]
    port.enable(1)
    assert [shmipc.receive_any(0)[1].count for _ in range(2)] == [4, 5]
    assert port.received == 5
    number, local = port.migrate(one)
    assert number == 6
    one.know("numbered", port)
    assert one.local("numbered") == local
    assert port.received == 0
    assert one.take_numbers("numbered") == [(5, 1), (6, 2), (7, 3)]
    assert one.delete("numbered") is None


@pytest.mark.row("D30")
def test_sender_cannot_choose_who_it_is(own: Any, one: Any, other: Any) -> None:
    port, mine = own(), own()
    theirs = other.make("theirs")
    port.send("plain")
    port.send("from a port", source=mine)
    first, second = port.receive(0), port.receive(0)
    assert first.sender == second.sender == shmipc.self()
    assert (first.source_id, second.source_id) == (0, mine.id)
    assert (first.port, second.port) == (port.id, port.id)
    assert one.send(port, "by another") is None
    assert port.receive(0).sender == one
    for send in (port.send, port.call, port.submit):
        with pytest.raises(shmipc.AccessDenied):
            send("forged", source=theirs)
    for forged in ({"sender": one}, {"source_id": theirs.id}, {"header": b"x"}):
        with pytest.raises(TypeError):
            port.send("forged", **forged)
    with pytest.raises(TypeError):
        port.send("forged", source=theirs.id)
    with pytest.raises(AttributeError):
        first.sender_id = theirs.id  # type: ignore[misc]
    # nor by what looks like a header in the body
    port.send(b"\xff" * 64, annex=b"\xff" * 120)
    assert port.receive(0).sender == shmipc.self()
    assert len(port) == 0
    info = shmipc.request_info(first)
    assert info.sender == shmipc.self()
    assert info.target == port
    assert other.delete("theirs") is None


@pytest.mark.row("D31")
def test_annex_travels_beside_the_body(own: Any) -> None:
    port = own()
    bodies = ["small", b"x" * 100_000]
    for body in bodies:
        for annex in (None, b"", b"a", bytes(range(120))):
            port.send(body, annex=annex)
            message = port.receive(0)
            assert (message.body, message.annex) == (body, annex)
    with pytest.raises(shmipc.TooLarge):
        port.send("x", annex=bytes(121))
    assert len(port) == 0
    # also when its message is set aside for a while
    for tag in (1, 2):
        port.send(tag, annex=b"%d" % tag, tag=tag)
    found = port.take(0, -1, -1, 2)
    assert found.body == 2
    assert port.receive(0).annex == b"1"
    wait = Wait(lambda: port.call("asked", 20.0, annex=b"of a call"))
    message = port.receive(20.0)
    assert message.annex == b"of a call"
    message.reply("answered")
    assert wait.end()[0] == "answered"


@pytest.mark.row("D32")
def test_body_can_be_fetched_later_once(world: Any, own: Any, eventually: Any) -> None:
    port = own()
    shared = shmipc.share(list(range(1000)))
    before = usage(world[0])
    for body in ("small", {"a": 1}, b"x" * 100_000, ["y" * 50_000], shared):
        port.send(body, annex=b"at once")
        message = port.receive(0, body=False)
        assert (message.body, message.annex) == (None, b"at once")
        fetched = message.get_data()
        assert (fetched == body).all() if body is shared else fetched == body
        with pytest.raises(shmipc.InvalidArgument):
            message.get_data()
    # what is never fetched takes no memory
    port.send(b"z" * 100_000)
    port.enable(1)
    message = shmipc.receive_any(0, body=False)[1]
    del message, fetched
    eventually(lambda: usage(world[0])["leases"] <= before["leases"] + 1)
    port.send("x")
    message = port.receive(0)
    assert message.body == "x"
    with pytest.raises(shmipc.InvalidArgument):
        message.get_data()


@pytest.mark.row("D33")
def test_handler_gets_the_messages_until_it_is_disconnected(own: Any, one: Any, eventually: Any) -> None:
    port = own()
    seen: list[Any] = []
    for number in range(3):
        port.send(number)

    def handler(message: shmipc.Message) -> None:
        seen.append(message.body)
        if message.is_call:
            if message.body == "fails":
                raise KeyError(message.body)
            message.reply(("handled", threading.current_thread() is threading.main_thread()))

    port.connect(handler)
    eventually(lambda: seen == [0, 1, 2])
    assert one.send(port, 3) is None
    eventually(lambda: seen == [0, 1, 2, 3])
    assert one.call(port, "ask") == ("handled", False)
    with pytest.raises(KeyError):
        one.call(port, "fails")
    for action in (lambda: port.receive(0), lambda: port.migrate(one), lambda: port.connect(handler), port.enable):
        with pytest.raises(shmipc.InvalidArgument):
            action()
    port.disconnect()
    port.send("later")
    assert port.receive(0).body == "later"
    with pytest.raises(shmipc.InvalidArgument):
        port.disconnect()
    assert seen == [0, 1, 2, 3, "ask", "fails"]
    # who waits when a handler is connected is told
    wait = Wait(lambda: port.receive(20.0)).begun()
    port.connect(handler)
    assert wait.end()[0] == "InvalidArgument"
    port.delete()


@pytest.mark.row("D20")
def test_ports_go_with_their_owner(system: shmipc.System, eventually: Any) -> None:
    victim, one = system.spawn(Host), system.spawn(Host)
    ports = [victim.make(name) for name in ("a", "b", "c")]
    assert [victim.enable(name) for name in ("a", "b")] == [None, None]
    mine = Port.create()
    with shmipc.PortGroup.create() as group:
        group.insert(ports[0])
        group.insert(mine)
        in_service = one.begin("call", ports[0], "served")
        assert victim.hold("a") == "served"
        queued = one.begin("call", ports[1], "queued")
        eventually(lambda: len(ports[1]) == 1)
        victim.begin_to_wait("take", "c", 20.0)
        shmipc.process(victim).kill()
        for wait in (in_service, queued):
            assert one.end(wait)[0] == "PeerDead"
        eventually(lambda: group.members() == [mine.id])
        assert group.broadcast("to the living").delivered == (mine.id,)
        assert mine.receive(0).body == "to the living"
    for port in ports:
        eventually(lambda port=port: told(lambda: port.send("x", 0)) == "Unreachable")
        with pytest.raises(shmipc.Unreachable):
            Port.open(port.id)
        port.close()
    mine.delete()
    mine.close()


def test_owner_that_leaves_in_order_takes_its_ports_along(system: shmipc.System) -> None:
    guest, one = system.spawn(Host), system.spawn(Host)
    port = guest.make("a")
    queued = one.begin("call", port, "queued")
    assert guest.hold("a") == "queued"
    shmipc.process(guest).stop()
    assert one.end(queued)[0] in ("PeerDead", "Closed")
    with pytest.raises(shmipc.Unreachable):
        port.send("x")
    port.close()


def test_handler_that_raises_system_exit_goes_on(own: Any, caplog: Any, eventually: Any) -> None:
    port = own()

    def handler(message: shmipc.Message) -> None:
        if message.body == "ends":
            raise SystemExit(3)
        message.reply(message.body)

    port.connect(handler)
    port.send("ends")
    eventually(lambda: "the handler of a port failed" in caplog.text)
    with pytest.raises(shmipc.RemoteError, match="SystemExit: 3"):
        port.call("ends", 20.0)
    assert port.call("goes on", 20.0) == "goes on"
    port.disconnect()


def test_port_is_as_before_when_its_handler_gets_no_thread(own: Any, monkeypatch: Any) -> None:
    port = own()
    port.enable(3)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            port.connect(print)
    assert port.priority == 3
    port.send("x")
    assert shmipc.receive_any(0)[1].body == "x"
    port.connect(lambda message: message.reply(message.body))
    assert port.call("y", 20.0) == "y"
    port.disconnect()


def test_handler_replaces_itself_by_another(own: Any, eventually: Any) -> None:
    port = own()
    seen: list[Any] = []
    go_on = threading.Event()
    threads: list[threading.Thread] = []

    def new(message: shmipc.Message) -> None:
        seen.append(("new", message.body))
        assert go_on.wait(20.0)

    def old(message: shmipc.Message) -> None:
        threads.append(threading.current_thread())
        seen.append(("old", message.body))
        port.disconnect()
        port.connect(new)

    port.connect(old)
    for number in range(3):
        port.send(number)
    eventually(lambda: len(seen) == 2)
    threads[0].join(5.0)
    assert not threads[0].is_alive()
    assert seen == [("old", 0), ("new", 1)]
    assert len(port) == 1
    go_on.set()
    eventually(lambda: len(seen) == 3)
    port.disconnect()
    assert seen[2] == ("new", 2)


def test_disconnecting_a_deleted_port_waits_for_its_handler(own: Any) -> None:
    port = own()
    begun, go_on = threading.Event(), threading.Event()
    seen: list[Any] = []

    def handler(message: shmipc.Message) -> None:
        begun.set()
        assert go_on.wait(20.0)
        seen.append(message.body)

    port.connect(handler)
    port.send("x")
    assert begun.wait(20.0)
    port.delete()
    wait = Wait(port.disconnect).begun()
    go_on.set()
    assert wait.end()[0] is None
    assert seen == ["x"]
    assert (port.member, port.id) not in ports._handlers
    with own() as another:
        another.connect(print)
        thread = ports._handlers[another.member, another.id].thread
        another.delete()
        thread.join(20.0)
        assert not thread.is_alive()
        assert (another.member, another.id) not in ports._handlers


def test_handler_that_keeps_a_request_goes_on_when_its_caller_gives_up(own: Any, caplog: Any, eventually: Any) -> None:
    port = own()
    kept: list[shmipc.Message] = []
    port.connect(kept.append)
    with pytest.raises(shmipc.Timeout):
        port.call("kept", 0.05)
    port.send("next")
    eventually(lambda: len(kept) == 2)
    port.disconnect()
    assert caplog.records == []
    kept.clear()


def test_numbers_that_no_port_can_have_are_refused(own: Any) -> None:
    port = own()
    for tag in (-1, 0, 1 << 60, 1 << 64):
        with pytest.raises(shmipc.InvalidArgument):
            port.send("x", 0, tag=tag)
    for id in (-1, 1 << 64):
        with pytest.raises(shmipc.InvalidArgument):
            Port.open(id)
    with pytest.raises(TypeError):
        Port.create(site=5)  # type: ignore[arg-type]
    assert len(port) == 0
    for ui in (-5, 1 << 64):
        assert chorus.portPi(ui) == (chorus.KnError.K_EINVAL, None)
        assert chorus.portLi(None, ui) == chorus.KnError.K_EINVAL
    assert chorus.portUi(None, 1 << 40) == (chorus.KnError.K_ENOPORT, 0)


def test_chorus_receives_what_only_pickling_by_value_sends(own: Any) -> None:
    port = own()
    port.send(lambda: 7)
    length, message, _ = chorus.ipcReceive(None, port.local, 0)
    assert message is not None
    assert length == len(message.body)
    assert pickle.loads(message.body)() == 7


# --- what a second reading found -------------------------------------------------------------------------------


class Unreadable:
    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return exec, (f"raise {self.name}()",)


@pytest.mark.row("D2", "K3")
def test_actor_of_another_system_is_taken_for_nobody_here(world: Any, own: Any) -> None:
    """Its number is another actor's in this one, who got the port with what was queued."""
    mine, first = own(), world[0]
    with shmipc.System() as second:
        stranger = second.spawn(Host)
        there = Port.create(system=second)
        with PortGroup.create(system=first) as group:
            refused = {
                "owner": lambda: Port.create(owner=stranger, system=first),
                "default": lambda: Port.default(stranger, system=first),
                "migrate": lambda: mine.migrate(stranger),
                "insert": lambda: group.insert(there),
                "remove": lambda: group.remove(there),
                "serve": lambda: first.serve("stranger", stranger),
            }
            group.insert(mine)
            refused["only"] = lambda: group.send("x", only=there)
            for name, act in refused.items():
                with pytest.raises(shmipc.InvalidArgument, match="system"):
                    raise AssertionError(f"{name}: {act()!r}")
            group.destroy()
        # And the reverse: the current system is the second one now.
        for name, act in {
            "monitor": lambda: shmipc.monitor(mine.owner),
            "link": lambda: shmipc.link(mine.owner),
            "receive": lambda: shmipc.receive(sender=mine.owner, timeout=0),
            "pull": lambda: shmipc.pull(mine.owner),
            "portCreate": lambda: chorus.portCreate(mine.owner)[0],
        }.items():
            if name == "portCreate":
                assert act() == chorus.KnError.K_EINVAL
            else:
                with pytest.raises(shmipc.InvalidArgument, match="system"):
                    raise AssertionError(f"{name}: {act()!r}")
        there.delete()
        there.close()


@pytest.mark.row("D22")
@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_request_that_ends_its_reader_is_answered_by_the_thread_of_a_handler(own: Any, error: str) -> None:
    port = own()
    port.connect(lambda message: message.reply("served"))
    with pytest.raises((shmipc.NotSupported, KeyboardInterrupt, GeneratorExit)):
        port.call(Unreadable(error), timeout=10)
    assert port.call("another", timeout=10) == "served"
    port.disconnect()


@pytest.mark.row("D8")
def test_enabled_port_is_received_from_after_its_handle_was_closed(own: Any) -> None:
    port = own()
    port.enable(1)
    for body in ("one", "two", "three"):
        port.send(body)
    got = []
    for _ in range(3):
        found, message = shmipc.receive_any(10)
        assert found == port
        got.append(message.body)
        found.close()
    assert got == ["one", "two", "three"]
    assert port.priority == 1


@pytest.mark.row("D7", "D8")
def test_waiting_receive_any_outlives_the_handle_that_another_thread_closes(own: Any) -> None:
    port = own()
    port.enable(1)
    port.send("one")
    found, _ = shmipc.receive_any(10)
    wait = Wait(lambda: shmipc.receive_any(5.0)).begun()
    found.close()
    port.send("two")
    (handle, message), _ = wait.end()
    assert message.body == "two"
    assert (handle, handle.closed) == (port, False)
    handle.close()
    # closed while it is received from by another: nobody loses anything
    waits = [Wait(lambda: close_each(shmipc.receive_any, 50)) for _ in range(2)]
    for number in range(100):
        port.send(number)
    assert sorted(waits[0].end()[0] + waits[1].end()[0]) == list(range(100))
    assert port.priority == 1


def close_each(receive: Any, count: int) -> list[Any]:
    """Receive so many, and close the port of each."""
    found = []
    for _ in range(count):
        port, message = receive(5.0)
        with port:
            found.append(message.body)
    return found


@pytest.mark.row("D5", "D7")
def test_withdrawn_requests_neither_come_first_nor_hide_what_is_there(own: Any) -> None:
    first, second = own(), own()
    for port in (first, second):
        port.enable(1)
    assert first.submit("withdrawn").cancel()
    second.send("older")
    first.send("newer")
    assert [shmipc.receive_any(0)[1].body for _ in range(2)] == ["older", "newer"]
    many = [own(1) for _ in range(40)]
    second.enable(9)
    for port in many:
        port.enable(1)
        assert port.submit("withdrawn").cancel()
    second.send("less urgent")
    assert shmipc.receive_any(0)[1].body == "less urgent"
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive_any(0)


@pytest.mark.row("D7")
def test_tick_of_a_timer_wakes_who_waits_for_any_port(own: Any) -> None:
    """It was found at the end of a slice, which is counted as a rescue."""
    port = own()
    port.enable(1)
    shmipc.send_after(0.2, port, "tick")
    found, message = shmipc.receive_any(10.0)
    assert (found, message.body, message.kind) == (port, "tick", shmipc.Kind.TIMER)


class Closer:
    """Closes a port as it is pickled."""

    def __init__(self, port: Port, data: bytes) -> None:
        self.port = port
        self.data = data

    def __reduce__(self) -> Any:
        self.port.close()
        return bytes, (self.data,)


@pytest.mark.parametrize("way", ["send", "call", "submit"])
def test_body_takes_no_memory_for_good_when_its_source_is_closed_meanwhile(world: Any, own: Any, way: str) -> None:
    port, (system, *_) = own(), world
    used = system.statistics().used_bytes
    for _ in range(24):
        source = own()
        body = Closer(source, bytes(1 << 20))
        if way == "send":
            port.send(body, source=source)
        elif way == "submit":
            port.submit(body, source=source).cancel()
        else:
            with pytest.raises(shmipc.Timeout):
                port.call(body, 0.01, source=source)
    while len(port):
        try:
            port.receive(0)
        except shmipc.MailboxEmpty:
            break
    assert system.statistics().used_bytes - used < 12 << 20  # eight are kept warm


IS_PORT = 92  # where a ring says that it is a port's


def place_of(address: int) -> tuple[str, int]:
    """The file that is mapped there, and where in it that is."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split()
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return path[0], address - start + int(offset, 16)
    raise AssertionError(f"nothing is mapped at {address:#x}")


@pytest.mark.parametrize("kind", [shmipc.Mailbox, Port])
def test_mailbox_is_a_port_if_its_record_and_its_bytes_say_so(world: Any, own: Any, kind: Any) -> None:
    with shmipc.Mailbox.create("hostile", slots=64) if kind is shmipc.Mailbox else own(64) as box:
        name: Any = "hostile" if kind is shmipc.Mailbox else box.id
        path, ring = place_of(ring_header(box).ctypes.data)
        file = os.open(path, os.O_RDWR)
        try:
            assert os.pread(file, 4, ring + 4) == (64).to_bytes(4, "little")  # the capacity
            said = os.pread(file, 4, ring + IS_PORT)
            assert said == (kind is Port).to_bytes(4, "little")
            os.pwrite(file, (kind is not Port).to_bytes(4, "little"), ring + IS_PORT)
            with pytest.raises(shmipc.Corrupted, match="whether it is a port"):
                kind.open(name)
            os.pwrite(file, said, ring + IS_PORT)
        finally:
            os.close(file)
        kind.open(name).close()


def test_messages_of_a_port_are_not_received_as_bare_bodies(own: Any) -> None:
    port = own()
    port.send("kept")
    for receive in (port.receive_many, lambda: port.receive_bounded(100)):
        with pytest.raises(shmipc.NotSupported, match=r"Port\.receive"):
            receive()
    assert port.receive(0).body == "kept"


@pytest.mark.row("D5")
def test_timer_that_has_ticked_makes_nothing_of_its_port_older(own: Any) -> None:
    ticked, other = own(), own()
    for port in (ticked, other):
        port.enable(1)
    timer = shmipc.send_every(0.05, ticked, "tick")
    assert shmipc.receive_any(10.0)[1].body == "tick"
    timer.cancel()
    other.send("older")
    ticked.send("newer")
    assert [shmipc.receive_any(0)[1].body for _ in range(2)] == ["older", "newer"]


class Cycle:
    """Garbage that only the collector finds, and that takes its time."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        time.sleep(0.002)


@pytest.mark.race
@pytest.mark.row("D8")
def test_waiting_receive_any_sees_a_port_whose_enabling_was_interrupted(own: Any) -> None:
    wait = Wait(lambda: [shmipc.receive_any(20)[1].body for _ in range(20)])
    wait.begun()
    before = gc.get_threshold()
    try:
        for number in range(20):
            port = own(4)
            port.send(number)
            Cycle()
            gc.set_threshold(1)
            port.enable()
            gc.set_threshold(*before)
            while len(port):
                assert wait.took is None
                time.sleep(0.001)
    finally:
        gc.set_threshold(*before)
    assert wait.end()[0] == list(range(20))


@pytest.mark.row("C8")
def test_request_that_a_handler_has_kept_is_not_what_it_serves_next(own: Any) -> None:
    port, other = own(), own()
    kept: list[Any] = []
    heard: list[Any] = []

    def handle(message: shmipc.Message) -> None:
        if message.is_call:
            kept.append(message)
        else:
            heard.append(told(lambda: other.receive(10).body))

    port.connect(handle)
    try:
        asked = port.submit("kept", timeout=0.4)
        port.send("at work")
        while len(port):
            time.sleep(0.001)
        assert asked.cancel()
        late = port.submit("kept until its deadline", timeout=0.1)
        time.sleep(0.3)
        other.send("for the handler")
        while not heard:
            time.sleep(0.001)
        assert heard == ["for the handler"]
        assert isinstance(late.exception(10), shmipc.Timeout)
    finally:
        port.disconnect()


def test_port_that_another_thread_closes_ends_a_send_as_closed(own: Any) -> None:
    port = own(1)
    port.send("full")
    held = Port.open(port.id)
    wait = Wait(lambda: held.send("more", 20)).begun()
    held.close()
    assert wait.end()[0] == "Closed"
    assert [port.receive(0).body] == ["full"]


def test_timeout_of_any_size_is_a_timeout(own: Any) -> None:
    port = own(2)
    port.send("one", 10**400)
    with pytest.raises(shmipc.InvalidArgument, match="at least 0"):
        port.send("two", -(10**400))
    assert port.receive(10**400).body == "one"
    assert len(port) == 0


def test_system_that_is_left_ends_every_wait_for_any_port(eventually: Any) -> None:
    with shmipc.System() as system:
        for _ in range(3):
            with pytest.raises(shmipc.MailboxEmpty):
                shmipc.receive_any(0)
        box = shmipc.Mailbox.create(system=system)
        waits = [Wait(shmipc.receive_any).begun(), Wait(box.receive).begun()]
    assert [wait.end()[0] for wait in waits] == ["Closed"] * 2
