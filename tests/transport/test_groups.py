"""Groups of ports: who is a member, who gets what is sent, and a service that outlives its servers."""

import gc
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import shmipc
from shmipc import Port, PortGroup
from shmipc.facades import chorus
from tests.actors import usage
from tests.transport.hosts import Host, Wait


@pytest.fixture(autouse=True, scope="module")
def world() -> Iterator[tuple[shmipc.System, Any, Any]]:
    with shmipc.System() as system:
        yield system, system.spawn(Host), system.spawn(Host)


@pytest.fixture
def group() -> Iterator[PortGroup]:
    with PortGroup.create() as made:
        yield made
        if not made.closed:
            made.destroy()


@pytest.fixture
def ports() -> Iterator[Any]:
    made: list[Port] = []

    def make(count: int, slots: int = 64, **options: Any) -> list[Port]:
        made.extend(Port.create(slots, **options) for _ in range(count))
        return made[-count:]

    yield make
    for port in made:
        port.delete()
        port.close()


def bodies(port: Port) -> list[Any]:
    return [port.receive(0).body for _ in range(len(port))]


@pytest.mark.row("D23")
def test_insert_is_idempotent_and_needs_the_key(world: Any, group: PortGroup, ports: Any) -> None:
    [port] = ports(1)
    group.insert(port)
    group.insert(port.id)
    assert group.members() == [port.id]
    assert group.broadcast("once").delivered == (port.id,)
    assert bodies(port) == ["once"]
    assert group.id != PortGroup.create().id
    # its id alone is enough to send, not to insert or remove
    assert group.key is not None
    for key in (None, group.key ^ 1):
        with PortGroup.open(group.id, key=key) as known:
            assert known.id == group.id
            for action in (lambda g=known: g.insert(port), lambda g=known: g.remove(port), known.destroy):
                with pytest.raises(shmipc.AccessDenied):
                    action()
            known.broadcast("by id")
    assert bodies(port) == ["by id"] * 2
    with PortGroup.open(group.id, key=group.key) as known:
        known.remove(port)
    with pytest.raises(shmipc.NotFound):
        group.remove(port)
    assert group.members() == []
    with Port.create() as gone:
        gone.delete()
        with pytest.raises(shmipc.NotFound):
            group.insert(gone)


@pytest.mark.row("D24")
def test_broadcast_reaches_each_member_once_whoever_is_dead_or_full(system: shmipc.System, eventually: Any) -> None:
    hosts = [system.spawn(Host) for _ in range(5)]
    made = [host.make("m", 2) for host in hosts]
    with PortGroup.create() as group:
        for port in made:
            group.insert(port)
        assert set(group.broadcast("all").delivered) == {port.id for port in made}
        assert [host.take("m") for host in hosts] == ["all"] * 5
        for number in range(2):
            made[1].send(number)
        shmipc.process(hosts[0]).kill()
        shmipc.process(hosts[0]).join(10.0)
        result = group.broadcast("the living")
        assert set(result.delivered) == {port.id for port in made[2:]}
        assert result.full == (made[1].id,)
        for host in hosts[2:]:
            assert host.take_numbers("m") == [("the living", 2)]
        assert hosts[1].take_numbers("m") == [(0, 2), (1, 3)]
        eventually(lambda: len(group.members()) == 4)
    for port in made:
        port.close()


@pytest.mark.row("D25")
def test_each_message_to_one_member_reaches_one_that_lives(system: shmipc.System, rounds: Any) -> None:
    total = rounds(3_000, 300)
    hosts = [system.spawn(Host) for _ in range(3)]
    made = [host.make("m", total) for host in hosts]
    with PortGroup.create() as group:
        for port in made:
            group.insert(port)
        chosen = Counter(group.send(number) for number in range(total))
        got = [host.take_numbers("m") for host in hosts]
        assert [len(one) for one in got] == [chosen[port.id] for port in made]
        assert all(got)
        assert sorted(body for one in got for body, _ in one) == list(range(total))
        shmipc.process(hosts[1]).kill()
        shmipc.process(hosts[1]).join(10.0)
        for number in range(total):
            group.send(number)
        got = [hosts[0].take_numbers("m"), hosts[2].take_numbers("m")]
        assert all(got)
        assert sorted(body for one in got for body, _ in one) == list(range(total))
    for port in made:
        port.close()


@pytest.mark.row("D26")
def test_members_are_chosen_by_their_site_or_passed_over(group: PortGroup, ports: Any) -> None:
    first, fellow = ports(2, 256, site="site1")
    [second] = ports(1, 256, site="site2")
    for port in (first, fellow, second):
        group.insert(port)
    assert {group.send(number, only="site2") for number in range(100)} == {second.id}
    assert {group.send(number, only=first) for number in range(100)} == {first.id}
    assert bodies(second) == bodies(first) == list(range(100))
    assert {group.send(number, never=first) for number in range(100)} == {fellow.id, second.id}
    assert {group.send(number, never="site1") for number in range(100)} == {second.id}
    assert bodies(first) == []
    for choice in ({"only": "nowhere"}, {"only": second, "never": second}, {"never": "site1", "only": "site1"}):
        with pytest.raises(shmipc.Unreachable):
            group.send("x", **choice)


@pytest.mark.row("D25", "D26")
def test_each_member_has_its_turn_though_every_other_choice_has_a_condition(group: PortGroup, ports: Any) -> None:
    made = [*ports(1, 256, site="site1"), *ports(1, 256, site="site2")]
    for port in made:
        group.insert(port)
    for only in ("site1", made[1]):
        chosen = Counter[int]()
        for number in range(60):
            chosen[group.send(number)] += 1
            group.send(number, only=only)
        assert len(chosen) == 2
    for port in made:
        port.connect(lambda message: message.is_call and message.reply(message.port))
    sent, asked = Counter[int](), Counter[int]()
    for number in range(60):
        sent[group.send(number)] += 1
        asked[group.call(number, 20.0)] += 1
    assert len(sent) == len(asked) == 2
    for port in made:
        port.disconnect()


@pytest.mark.row("D27")
def test_empty_group_is_unreachable(group: PortGroup, ports: Any) -> None:
    def check() -> None:
        for action in (group.send, group.broadcast, group.call):
            with pytest.raises(shmipc.Unreachable):
                action("x")

    check()
    [port] = ports(1)
    group.insert(port)
    group.send("one")
    group.remove(port)
    check()
    assert bodies(port) == ["one"]


def test_group_whose_members_are_all_full_waits_for_the_first_room(group: PortGroup, ports: Any) -> None:
    made = ports(2, 1)
    for port in made:
        group.insert(port)
        port.send("fills it")
    with pytest.raises(shmipc.MailboxFull) as full:
        group.send("x", 0)
    assert full.value.message == "x"
    with pytest.raises(shmipc.Timeout):
        group.send("x", 0.05)
    wait = Wait(lambda: group.send("later", 20.0)).begun()
    while wait.took is None:
        for port in made:
            if len(port) and port.receive(0).body == "later":
                port.send("it was here")
        wait.thread.join(0.01)
    assert wait.end()[0] in {port.id for port in made}


@pytest.mark.row("D28")
def test_service_goes_on_when_its_server_is_replaced(system: shmipc.System) -> None:
    client = system.spawn(Host)
    with PortGroup.create() as group:
        answers: list[tuple[int, Any]] = []
        failures: list[str] = []
        over = threading.Event()

        def use() -> None:
            number = 0
            while not over.is_set():
                try:
                    answers.append(group.call(number, 20.0))
                    number += 1
                except (shmipc.PeerDead, shmipc.Unreachable) as error:
                    failures.append(type(error).__name__)
                    over.wait(0.002)

        clients = Wait(use)
        servers = []
        for _ in range(3):
            server = system.spawn(Host)
            servers.append(shmipc.process(server).pid)
            server.make("m")
            serving = server.begin("serve", "m", 1 << 30)
            assert serving == 0
            assert server.insert("m", group) is None
            while not answers or answers[-1][0] != servers[-1]:
                assert clients.took is None
                over.wait(0.002)
            shmipc.process(server).kill()
        over.set()
        clients.end()
        assert {pid for pid, _ in answers} == set(servers)
        assert [number for _, number in answers] == list(range(len(answers)))
        assert failures
    assert client.pid()


@pytest.mark.row("D29")
def test_ids_that_follow_from_a_stamp_are_the_same_everywhere(world: Any) -> None:
    _, one, other = world
    assert one.group_id(7) == other.group_id(7) == PortGroup.static_id(7)
    assert one.group_id(8) != one.group_id(7)
    with PortGroup.create(stamp=7) as group:
        assert group.id == one.group_id(7)
        assert one.open_group(7) == group.id
        assert other.create_group(7) == "NameTaken"
        with pytest.raises(shmipc.NameTaken):
            PortGroup.create(stamp=7)
        with PortGroup.open(group.id) as known:
            assert known.id == group.id
            group.destroy()
            for action in (known.members, lambda: known.broadcast(1), lambda: group.insert(1)):
                with pytest.raises(shmipc.Closed):
                    action()
        assert one.open_group(7) == "NotFound"
        assert other.create_group(7) == group.id
    assert other.create_group(7) == PortGroup.static_id(7)  # who had it open has closed it
    with pytest.raises(shmipc.NotFound):
        PortGroup.open(PortGroup.static_id(7))


def test_group_goes_with_the_last_who_has_it_open(world: Any, eventually: Any) -> None:
    system = world[0]
    before = usage(system)
    with PortGroup.create() as group:
        id = group.id
        assert repr(group).startswith("<PortGroup 0x")
    with pytest.raises(shmipc.NotFound):
        PortGroup.open(id)
    with pytest.raises(shmipc.Closed):
        group.members()
    eventually(lambda: usage(system) == before)


def test_sending_to_a_group_keeps_no_memory_of_members_that_are_gone(
    world: Any, group: PortGroup, ports: Any, eventually: Any
) -> None:
    [stays] = ports(1)
    group.insert(stays)
    group.send("opens it")
    stays.receive(0)

    def held() -> list[int]:
        counters = usage(world[0])
        return [counters[name] for name in ("mailboxes", "blocks", "leases")]

    before = held()
    for gone in (Port.delete, group.remove):
        for _ in range(3):
            with Port.create(1024) as port:
                group.insert(port)
                assert group.broadcast("all").delivered == (stays.id, port.id)
                gone(port)
                if gone != Port.delete:
                    port.delete()
        group.members()
        while len(stays):
            stays.receive(0)
        eventually(lambda: held() == before)


def test_ports_and_groups_that_were_sent_to_hold_no_closed_system() -> None:
    def use() -> weakref.ref[Any]:
        with shmipc.System() as system, PortGroup.create() as group, Port.create() as port:
            group.insert(port)
            group.send("x")
            port.connect(print)
            _, cap = chorus.grpAllocate(chorus.K_DYNAMIC)
            assert cap is not None
            assert chorus.grpPortInsert(cap, port.id) == 0
            assert chorus.ipcSend(chorus.KnMsgDesc(b""), 0, cap.ui) == 1
            port.disconnect()
            return weakref.ref(system._membership.member)

    member = use()
    gc.collect()
    assert member() is None


def test_threads_send_to_a_group_while_members_go(group: PortGroup, ports: Any) -> None:
    [stays] = ports(1, 1)
    group.insert(stays)
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            group.broadcast("x")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        waits = [Wait(send) for _ in range(3)]
        for _ in range(100):
            with Port.create(1) as port:
                group.insert(port)
                port.receive(20.0)
                port.delete()
        assert [wait.took for wait in waits] == [None] * 3
    finally:
        over.set()
        sys.setswitchinterval(before)
    assert [wait.end()[0] for wait in waits] == [None] * 3


def raise_unreachable() -> None:
    raise shmipc.Unreachable("as it is read")


class Unreadable:
    """Raises in who reads it."""

    def __reduce__(self) -> Any:
        return raise_unreachable, ()


class Third:
    """Lets itself be pickled twice."""

    times = 0

    def __reduce__(self) -> Any:
        Third.times += 1
        if Third.times >= 3:
            raise ValueError("no more")
        return str, ("copy",)


@pytest.mark.row("D24")
def test_broadcast_that_is_broken_off_tells_who_has_a_copy(group: PortGroup, ports: Any) -> None:
    for port in ports(4):
        group.insert(port)
    first, second, *others = group.members()
    with pytest.raises(ValueError, match="no more") as caught:
        group.broadcast(Third())
    assert caught.value.delivered == (first, second)  # type: ignore[attr-defined]
    for id in (first, second):
        assert Port.open(id).receive(0).body == "copy"
    for id in others:
        assert len(Port.open(id)) == 0


class Unsendable:
    """Its pickling fails as a send of its own would."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [shmipc.MailboxFull, shmipc.Timeout, shmipc.Unreachable])
def test_what_the_pickling_of_a_body_raises_is_no_answer_of_a_member(group: PortGroup, ports: Any, error: Any) -> None:
    for port in ports(2, 1):
        group.insert(port)
    for action in (group.send, group.call, group.broadcast):
        wait = Wait(lambda: action(Unsendable(error("its own"))))  # noqa: B023
        assert wait.end(5.0)[0] == error.__name__
        with pytest.raises(error, match="its own"):
            action(Unsendable(error("its own")))


def test_call_of_a_handler_goes_to_another_member_than_its_own(group: PortGroup, ports: Any) -> None:
    own, other = ports(2)
    own.connect(lambda message: message.reply([group.call("again", 5.0) for _ in range(4)]))
    other.connect(lambda message: message.reply(message.body))
    group.insert(own)
    with pytest.raises(shmipc.InvalidArgument):
        own.call("there is no other", 5.0)
    group.insert(other)
    assert own.call("there is another", 20.0) == ["again"] * 4
    for port in (own, other):
        port.disconnect()


@pytest.mark.row("B6")
@pytest.mark.parametrize("way", ["error", "as it is read"])
def test_request_is_served_once_though_its_answer_is_that_something_is_unreachable(
    group: PortGroup, ports: Any, way: str
) -> None:
    served: list[int] = []

    def serve(message: shmipc.Message) -> None:
        served.append(message.body)
        if way == "error":
            message.reply_error(shmipc.Unreachable(way))
        else:
            message.reply(Unreadable())

    for port in (members := ports(3)):
        group.insert(port)
        port.connect(serve)
    for number in range(6):
        with pytest.raises(shmipc.Unreachable, match=way):
            group.call(number, 5.0)
    assert served == list(range(6))
    for port in members:
        port.disconnect()


def test_call_passes_over_members_that_are_full(group: PortGroup, ports: Any) -> None:
    full, idle = ports(2, 1)
    for port in (full, idle):
        group.insert(port)
    full.send("fills it")
    idle.connect(lambda message: message.reply(message.body))
    assert [group.call(number, 5.0) for number in range(4)] == list(range(4))
    idle.disconnect()
    # when all are full it waits for room in any
    idle.send("fills it")
    began = time.monotonic()
    with pytest.raises(shmipc.Timeout):
        group.call("x", 0.05)
    assert time.monotonic() - began >= 0.05
    with pytest.raises(shmipc.InvalidArgument):
        group.call("x", 0)
    wait = Wait(lambda: group.call("later", 20.0)).begun()
    while (message := idle.receive(20.0)).body != "later":
        pass
    message.reply("answered")
    assert wait.end()[0] == "answered"


def test_send_finds_room_in_whichever_full_member_has_it_first(group: PortGroup, ports: Any) -> None:
    made = ports(3, 1)
    for port in made:
        group.insert(port)
        port.send("fills it")
    for port in reversed(made):  # not in the order of their turns
        wait = Wait(lambda: group.send("later", 5.0)).begun()
        port.receive(0)
        assert wait.end()[0] == port.id
        assert [len(one) for one in made] == [1, 1, 1]


def test_ids_and_keys_that_no_group_can_have_are_refused(group: PortGroup, ports: Any) -> None:
    [port] = ports(1)
    with PortGroup.create(stamp=0xFFFFFFFF) as last, PortGroup.create(stamp=9):
        last.insert(port)
        for id in (-1, 0, 1 << 64, PortGroup.static_id(9) | 1 << 40):
            with pytest.raises(shmipc.InvalidArgument):
                PortGroup.open(id)
        assert chorus.ipcSend(chorus.KnMsgDesc(b"x"), 0, -1) == chorus.KnError.K_EINVAL
        assert len(port) == 0
    with pytest.raises(shmipc.NotFound):
        PortGroup.open(1 << 20)
    for key in (-1, 1 << 64):
        with pytest.raises(shmipc.InvalidArgument):
            PortGroup.open(group.id, key=key)
        assert chorus.grpPortInsert(chorus.KnCap(group.id, key), port.id) < 0
    for id in (-1, 1 << 64):
        with pytest.raises(shmipc.InvalidArgument):
            group.insert(id)
        with pytest.raises(shmipc.InvalidArgument):
            group.remove(id)
    group.insert(port)
    for choice in ({"only": 5}, {"never": port.id}):
        with pytest.raises(TypeError):
            group.send("x", 0, **choice)
    assert len(port) == 0


def test_moved_array_is_not_broadcast(group: PortGroup, ports: Any) -> None:
    """The first member had it, and the caller an error that did not say so."""
    for port in ports(2):
        group.insert(port)
    array = shmipc.zeros(4)
    moved = shmipc.move(array)
    with pytest.raises(BufferError, match="one receiver"):
        group.broadcast(moved)
    group.send(moved)
    for id in group.members():
        with Port.open(id) as port:
            while len(port):
                assert port.receive(0).body.flags.writeable


@pytest.mark.row("B23")
@pytest.mark.parametrize("stamp", [None, 23], ids=["new", "stamped"])
def test_request_that_came_through_a_group_tells_the_group(
    world: tuple[shmipc.System, Any, Any], ports: Any, stamp: int | None
) -> None:
    _, *clients = world
    [port] = ports(1)
    with PortGroup.create(stamp=stamp) as group:
        group.insert(port)
        asked, infos = [], []
        for client, to in zip([*clients, clients[0]], (group, port, group), strict=True):
            asked.append(client.call.submit(to, "question"))
            message = port.receive(20.0)
            before = shmipc.request_info(message)
            assert message.reply("answer") is None
            assert shmipc.request_info(message) == before
            infos.append((before.sender, type(before.target), before.target.id))
            before.target.close()
        assert [future.result(20.0) for future in asked] == ["answer"] * 3
        assert infos == [
            (clients[0], PortGroup, group.id),
            (clients[1], Port, port.id),
            (clients[0], PortGroup, group.id),
        ]


@pytest.mark.row("B23")
def test_request_tells_who_asked_when_its_port_is_gone(world: tuple[shmipc.System, Any, Any]) -> None:
    _, client, _ = world
    port = Port.create()
    asked = client.call.submit(port, "question")
    message = port.receive(20.0)
    port.delete()
    info = shmipc.request_info(message)
    assert (info.sender, info.target, info.transaction) == (client, None, message.transaction)
    assert (info.pid, info.identity) == (shmipc.process(client).pid, shmipc.process(client).identity)
    assert shmipc.aborted()  # the call is closed with its port
    with pytest.raises(shmipc.Closed):
        asked.result(20.0)
    port.close()
