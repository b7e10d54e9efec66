"""The interface of the ChorusOS nucleus: every function, what it returns, and what each failure is called."""

import builtins
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import shmipc
from shmipc.facades import chorus
from shmipc.facades.chorus import (
    K_ANYENABLED,
    K_BROADMODE,
    K_DEFAULTPORT,
    K_DYNAMIC,
    K_FUNCMODE,
    K_FUNCUMODE,
    K_FUNCXMODE,
    K_MAINTHREAD,
    K_MAXSAVED,
    K_MYACTOR,
    K_NOBODY,
    K_STATUSER,
    KnCap,
    KnError,
    KnIpcDest,
    KnMsgDesc,
)
from tests.facades.nuclei import Nucleus
from tests.transport.hosts import Wait

E = KnError


@pytest.fixture(autouse=True, scope="module")
def world() -> Iterator[tuple[shmipc.System, Any, Any]]:
    with shmipc.System() as system:
        yield system, system.spawn(Nucleus), system.spawn(Nucleus)


@pytest.fixture
def one(world: Any) -> Any:
    return world[1]


@pytest.fixture
def other(world: Any) -> Any:
    return world[2]


def msg(body: bytes, annex: bytes | None = None) -> KnMsgDesc:
    return KnMsgDesc(body, annex)


def receive(portli: int, timeout: int = 0, capacity: int | None = None) -> tuple[int, Any, int]:
    return chorus.ipcReceive(capacity, portli, timeout)


def test_actors_and_ports_are_named(world: Any, one: Any) -> None:
    assert chorus.actorSelf() == (0, shmipc.self())
    assert chorus.threadSelf() == chorus.threadSelf() > 0
    li, ui = chorus.portCreate(K_MYACTOR)
    assert li > 0
    assert chorus.portUi(K_MYACTOR, li) == (0, ui)
    assert chorus.portLi(K_MYACTOR, ui) == li
    assert chorus.portLi(one, ui) == E.K_ENOPORT
    theirs_li, theirs = chorus.portCreate(one)
    assert one.do("portUi", K_MYACTOR, theirs_li) == (0, theirs)
    assert chorus.portUi(one, theirs_li) == (0, theirs)
    assert chorus.portPi(theirs) == chorus.actorPi(one)
    assert chorus.portPi(theirs)[1] != chorus.actorPi(K_MYACTOR)[1]
    assert chorus.portUi(K_MYACTOR, 99) == (E.K_ENOPORT, 0)
    assert "99" in chorus.detail()
    # the default port
    _, default = chorus.portUi(one, K_DEFAULTPORT)
    assert one.do("portUi", K_MYACTOR, K_DEFAULTPORT) == (0, default)
    assert one.do("portLi", K_MYACTOR, default) == K_DEFAULTPORT
    assert one.do("portDelete", K_MYACTOR, K_DEFAULTPORT) == E.K_EINVAL
    # a declared one
    declared = chorus.portDeclare(K_MYACTOR, 5)
    assert declared > 0
    assert one.do("portDeclare", K_MYACTOR, 5) == E.K_EEXIST
    assert one.do("ipcSend", msg(b"declared"), K_DEFAULTPORT, 5) == 1
    assert receive(declared)[1].body == b"declared"
    assert chorus.portDelete(K_MYACTOR, declared) == 0
    assert chorus.ipcSend(msg(b"x"), K_DEFAULTPORT, 5) == E.K_EUNREACH
    assert chorus.portDeclare(K_MYACTOR, 0) == E.K_EINVAL
    # only one's own
    for name, more in (("portDelete", ()), ("portEnable", (1,)), ("portDisable", ())):
        assert getattr(chorus, name)(one, theirs_li, *more) == E.K_EACCESS
    assert one.do("portDelete", K_MYACTOR, theirs_li) == 0
    assert one.do("portDelete", K_MYACTOR, theirs_li) == E.K_ENOPORT
    assert chorus.portDelete(K_MYACTOR, li) == 0


def test_messages_and_any_enabled_port(one: Any) -> None:
    first, first_ui = chorus.portCreate(K_MYACTOR)
    second, second_ui = chorus.portCreate(K_MYACTOR)
    assert receive(K_ANYENABLED) == (E.K_EWOULDBLOCK, None, K_ANYENABLED)
    assert receive(K_ANYENABLED, 20) == (E.K_ETIMEOUT, None, K_ANYENABLED)
    assert chorus.portEnable(K_MYACTOR, first, 5) == chorus.portEnable(K_MYACTOR, second, 1) == 0
    assert one.do("ipcSend", msg(b"low", b"a"), K_DEFAULTPORT, first_ui) == 1
    assert one.do("ipcSend", msg(b"high"), K_DEFAULTPORT, second_ui) == 1
    assert receive(K_ANYENABLED) == (4, msg(b"high"), second)
    assert receive(K_ANYENABLED, 0, 2)[0] == E.K_ETOOSMALL
    length, got, where = receive(K_ANYENABLED, 0, 3)
    assert (length, got.body, where) == (3, b"low", first)
    assert got.annex == b"a".ljust(120, b"\0")
    assert chorus.portGetSeqNum(K_MYACTOR, first) == 1
    # who sent it is the runtime's word
    _, info = chorus.ipcSysInfo()
    assert info is not None
    assert info.source_actor == one
    assert info.source_port == chorus.portUi(one, K_DEFAULTPORT)[1]
    assert (info.target, info.sequence, info.transaction) == (first_ui, 1, 0)
    assert info.protection == chorus.actorPi(one)[1]
    assert one.do("ipcSend", msg(b"x"), 1000, first_ui) == E.K_ENOPORT  # no port of that number is its own
    # later
    assert chorus.ipcSend(msg(b"body", b"annex"), K_DEFAULTPORT, first_ui) == 1
    assert receive(first, 0, K_NOBODY)[:2] == (0, msg(b"", b"annex".ljust(120, b"\0")))
    assert chorus.ipcGetData() == (4, msg(b"body", b"annex".ljust(120, b"\0")))
    assert chorus.ipcGetData() == (E.K_EINVAL, None)
    assert chorus.ipcReply(msg(b"to nobody")) == E.K_EINVAL
    # disabled, full, too large, wrong
    assert chorus.portDisable(K_MYACTOR, first) == 0
    for _ in range(64):
        assert chorus.ipcSend(msg(b"x"), first, first_ui) == 1
    assert chorus.ipcSend(msg(b"x"), first, first_ui) == E.K_EBUSY
    assert receive(K_ANYENABLED)[0] == E.K_EWOULDBLOCK
    assert chorus.ipcSend(msg(b"x", bytes(121)), first, second_ui) == E.K_ETOOLARGE
    for wrong in (("x", first, second_ui), (msg(b"x"), "1", second_ui), (msg(b"x"), first, "1"), (msg("x"), first, 1)):
        assert chorus.ipcSend(*wrong) == E.K_EINVAL  # type: ignore[arg-type]
    assert chorus.portDelete(K_MYACTOR, first) == chorus.portDelete(K_MYACTOR, second) == 0
    assert receive(first)[0] == E.K_ENOPORT
    assert chorus.ipcSend(msg(b"x"), K_DEFAULTPORT, first_ui) == E.K_EUNREACH


def test_calls_saved_requests_and_their_failures(one: Any, other: Any) -> None:
    li, ui = one.make()
    echo = one.begin("ipcReceive", None, li, 20_000)
    assert chorus.ipcCall(msg(b"nobody answers"), K_DEFAULTPORT, ui, None, 50) == (E.K_ETIMEOUT, None)
    assert one.end(echo)[0] == 14
    served = one.echo.submit(li, 2)
    assert chorus.ipcCall(msg(b"hello", b"beside"), K_DEFAULTPORT, ui, None, 20_000) == (
        5,
        msg(b"hello", b"beside".ljust(120, b"\0")),
    )
    assert chorus.ipcCall(msg(b"hello"), K_DEFAULTPORT, ui, 4, 20_000)[0] == E.K_ETOOSMALL
    infos = served.result(20.0)
    assert [info.source_actor for info in infos] == [shmipc.self()] * 2
    assert infos[0].transaction != infos[1].transaction != 0
    assert chorus.ipcCall(msg(b"x"), K_DEFAULTPORT, ui, None, 0) == (E.K_EINVAL, None)
    # saved, and answered in another order
    saving = one.save_all.submit(li, 3)
    asked = [other.begin("ipcCall", msg(b"x"), K_DEFAULTPORT, ui, None, 20_000) for _ in range(3)]
    numbers = saving.result(20.0)
    assert sorted(other.end(place)[1].body for place in asked) == sorted(b"%d" % number for number in numbers)
    assert chorus.ipcRestore(12345) == E.K_EINVAL
    assert one.do("portDelete", K_MYACTOR, li) == 0
    assert chorus.ipcCall(msg(b"x"), K_DEFAULTPORT, ui, None, 20_000) == (E.K_EUNREACH, None)


@pytest.mark.row("B22")
def test_saved_requests_are_answered_in_any_order(one: Any, other: Any) -> None:
    li, ui = one.do("portCreate", K_MYACTOR)
    calls = [other.begin("ipcCall", msg(b"%d" % number), K_DEFAULTPORT, ui, None, 20_000) for number in range(10)]
    saved = []
    for _ in calls:
        length, got, _ = one.do("ipcReceive", None, li, 20_000)
        assert length == 1
        saved.append((one.do("ipcSave"), got.body))
    assert sorted(body for _, body in saved) == [b"%d" % number for number in range(10)]
    random.Random(22).shuffle(saved)
    for number, body in saved:
        assert one.do("ipcRestore", number) == 0
        assert one.do("ipcReply", msg(b"to " + body)) == 0
    assert [other.end(call) for call in calls] == [(4, msg(b"to %d" % number)) for number in range(10)]
    assert one.do("portDelete", K_MYACTOR, li) == 0


@pytest.mark.row("B22")
def test_saving_more_than_the_limit_keeps_the_current_message() -> None:
    li, ui = chorus.portCreate(K_MYACTOR)
    saved = []
    for number in range(K_MAXSAVED + 1):
        assert chorus.ipcSend(msg(b"%d" % number), K_DEFAULTPORT, ui) == 1
        assert receive(li)[0] > 0
        if number < K_MAXSAVED:
            saved.append(chorus.ipcSave())
    assert chorus.ipcSave() == E.K_ELIMIT
    assert chorus.ipcSysInfo()[1].sequence == K_MAXSAVED + 1  # type: ignore[union-attr]
    for number in saved:
        assert chorus.ipcRestore(number) == 0
    assert chorus.ipcSysInfo()[1].sequence == K_MAXSAVED  # type: ignore[union-attr]
    assert chorus.portDelete(K_MYACTOR, li) == 0


def test_migration(one: Any, other: Any) -> None:
    li, ui = chorus.portCreate(K_MYACTOR)
    for number in range(6):
        assert chorus.ipcSend(msg(b"%d" % number), K_DEFAULTPORT, ui) == 1
    assert [receive(li, late)[1].body for late in (0, -1, 10**400)] == [b"0", b"1", b"2"]
    number, there = chorus.portMigrate(K_MYACTOR, li, one)
    assert number == 4
    assert receive(li)[0] == E.K_ENOPORT
    assert one.do("portLi", K_MYACTOR, ui) == there
    assert one.do("portGetSeqNum", K_MYACTOR, there) == 0
    assert one.do("ipcReceive", None, there, 0) == (1, msg(b"3"), there)
    assert chorus.portMigrate(one, there, other) == (E.K_EACCESS, 0)
    number, further = one.do("portMigrate", K_MYACTOR, there, other, False)
    assert number == 2
    assert other.do("ipcReceive", None, further, 0)[0] == E.K_EWOULDBLOCK
    assert other.do("portDelete", K_MYACTOR, further) == 0


@pytest.mark.row("B17")
def test_groups(one: Any, other: Any) -> None:
    status, cap = chorus.grpAllocate(K_DYNAMIC)
    assert (status, type(cap)) == (0, KnCap)
    assert cap is not None
    assert cap.key is not None
    assert chorus.ipcSend(msg(b"x"), K_DEFAULTPORT, cap.ui) == E.K_EUNREACH
    ports = [one.make(), other.make(), chorus.portCreate(K_MYACTOR)]
    for _, ui in ports:
        assert chorus.grpPortInsert(cap, ui) == chorus.grpPortInsert(cap, ui) == 0
    assert chorus.grpPortInsert(KnCap(cap.ui, cap.key ^ 1), ports[0][1]) == E.K_EACCESS
    assert chorus.grpPortInsert(KnCap(cap.ui, None), ports[0][1]) == E.K_EACCESS
    # all
    assert one.do("ipcSend", msg(b"all"), K_DEFAULTPORT, cap.ui) == 3
    mine, mine_ui = ports[2]
    assert receive(mine)[1].body == b"all"
    for actor, (li, _) in ((one, ports[0]), (other, ports[1])):
        assert actor.do("ipcReceive", None, li, 0)[1].body == b"all"
    # one of them
    assert chorus.ipcTarget(cap.ui, K_FUNCUMODE) == (E.K_EINVAL, None)
    assert chorus.ipcTarget(cap.ui, K_FUNCMODE, ports[0][1]) == (E.K_EINVAL, None)
    assert chorus.ipcTarget(cap.ui, 9) == (E.K_EINVAL, None)
    status, only = chorus.ipcTarget(cap.ui, K_FUNCUMODE, mine_ui)
    assert (status, only) == (0, KnIpcDest(cap.ui, K_FUNCUMODE, mine_ui))
    for _ in range(10):
        assert one.do("ipcSend", msg(b"mine"), K_DEFAULTPORT, only) == 1
        assert receive(mine)[1].body == b"mine"
    _, never = chorus.ipcTarget(cap.ui, K_FUNCXMODE, mine_ui)
    for _ in range(10):
        assert one.do("ipcSend", msg(b"theirs"), K_DEFAULTPORT, never) == 1
    assert receive(mine)[0] == E.K_EWOULDBLOCK
    # a request goes to one
    status, (li, ui) = 0, ports[0]
    while one.do("ipcReceive", None, li, 0)[0] >= 0:
        pass
    serving = one.echo.submit(li, 1)
    _, first = chorus.ipcTarget(cap.ui, K_FUNCUMODE, ui)
    assert first is not None
    assert chorus.ipcCall(msg(b"one"), K_DEFAULTPORT, first, None, 20_000) == (3, msg(b"one"))
    assert serving.result(20.0)[0].target == cap.ui
    assert chorus.ipcCall(msg(b"x"), K_DEFAULTPORT, KnIpcDest(cap.ui, K_BROADMODE), None, 20_000) == (E.K_EINVAL, None)
    assert chorus.grpPortRemove(cap, mine_ui) == 0
    assert chorus.grpPortRemove(cap, mine_ui) == E.K_ENOTFOUND
    # of a stamp
    status, static = chorus.grpAllocate(K_STATUSER, 7)
    assert status == 0
    assert one.do("grpAllocate", K_STATUSER, 7)[0] == E.K_EEXIST
    assert static is not None
    assert static.ui == shmipc.PortGroup.static_id(7)
    assert chorus.grpPortInsert(static, mine_ui) == 0
    assert one.do("ipcSend", msg(b"by its stamp"), K_DEFAULTPORT, static.ui) == 1
    assert receive(mine)[1].body == b"by its stamp"


def test_handlers(one: Any, eventually: Any) -> None:
    li, ui = chorus.portCreate(K_MYACTOR)
    seen: list[bytes] = []

    def handler(got: KnMsgDesc) -> None:
        seen.append(got.body)
        if chorus.ipcSysInfo()[1].transaction:  # type: ignore[union-attr]
            chorus.svMsgHdlReply(msg(b"handled " + got.body))

    assert chorus.ipcSend(msg(b"queued"), K_DEFAULTPORT, ui) == 1
    assert chorus.svMsgHandler(K_MYACTOR, li, handler) == 0
    assert one.ask(ui, b"request") == (15, msg(b"handled request"))
    assert seen == [b"queued", b"request"]
    assert receive(li)[0] == E.K_EINVAL
    assert chorus.portMigrate(K_MYACTOR, li, one)[0] == E.K_EINVAL
    assert chorus.svMsgHandler(K_MYACTOR, li, None) == 0
    assert chorus.svMsgHandler(K_MYACTOR, li, None) == E.K_EINVAL
    assert one.do("ipcSend", msg(b"later"), K_DEFAULTPORT, ui) == 1
    assert receive(li)[1].body == b"later"
    assert chorus.portDelete(K_MYACTOR, li) == 0


def test_answered_end_of_a_process_is_a_status() -> None:
    with shmipc.Port.create() as port:
        port.connect(lambda message: message.reply_error(getattr(builtins, message.body.decode())()))
        _, cap = chorus.grpAllocate(K_DYNAMIC)
        assert cap is not None
        assert chorus.grpPortInsert(cap, port.id) == 0
        for dest in (port.id, KnIpcDest(cap.ui, K_FUNCMODE)):
            for name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit"):
                assert chorus.ipcCall(msg(name.encode()), K_DEFAULTPORT, dest, None, 10_000) == (E.K_EFAILED, None)
                assert name in chorus.detail()
        port.delete()


def test_aborts(one: Any) -> None:
    li, ui = one.make()
    assert chorus.threadAborted() == 0
    assert chorus.threadAbort(one, -1) == E.K_EINVAL
    assert chorus.threadAbort(one, 1) == chorus.threadAbort(one, (1 << 64) - 1) == E.K_ENOTFOUND
    waiting = one.do.submit("ipcReceive", None, li, 20_000)
    while not waiting.done():
        assert chorus.threadAbort(one, K_MAINTHREAD) == 0  # before it waits, an abort is lost on an idle actor
        time.sleep(0.01)
    assert waiting.result(0.1)[0] == E.K_EABORT
    assert chorus.ipcSend(msg(b"kept"), K_DEFAULTPORT, ui) == 1
    received = one.do("ipcReceive", None, li, 1000)
    if received[0] == E.K_EABORT:  # one abort too many
        received = one.do("ipcReceive", None, li, 1000)
    assert received[1] == msg(b"kept")
    assert one.do("portDelete", K_MYACTOR, li) == 0


@pytest.mark.row("C1", "C2")
def test_any_thread_can_be_aborted_by_its_identifier() -> None:
    li, ui = chorus.portCreate(K_MYACTOR)
    named: list[int] = []
    go_on = threading.Event()

    def receives() -> tuple[int, int, int]:
        named.append(chorus.threadSelf())
        aborted = receive(li, 20_000)[0]
        named.append(0)
        assert go_on.wait(20.0)
        return aborted, receive(li, 20_000)[0], receive(li, 100)[0]

    wait = Wait(receives).begun()
    assert chorus.threadAbort(K_MYACTOR, named[0]) == 0
    while len(named) < 2:
        time.sleep(0.001)
    assert chorus.threadAbort(K_MYACTOR, named[0]) == 0  # while it runs
    go_on.set()
    assert wait.end()[0] == (E.K_EABORT, E.K_EABORT, E.K_ETIMEOUT)
    assert chorus.threadAborted() == 0
    assert chorus.threadAbort(K_MYACTOR, named[0]) == E.K_ENOTFOUND
    assert chorus.ipcSend(msg(b"kept"), K_DEFAULTPORT, ui) == 1
    assert receive(li)[1] == msg(b"kept")
    assert chorus.portDelete(K_MYACTOR, li) == 0


@pytest.mark.row("D26")
def test_member_that_is_avoided_may_have_died(system: shmipc.System) -> None:
    dead: Any = system.spawn(Nucleus)
    mine = chorus.portCreate(K_MYACTOR)
    theirs = dead.do("portCreate", K_MYACTOR)
    _, cap = chorus.grpAllocate(K_DYNAMIC)
    for _, ui in (mine, theirs):
        assert chorus.grpPortInsert(cap, ui) == 0
    _, never = chorus.ipcTarget(cap.ui, K_FUNCXMODE, theirs[1])
    _, only = chorus.ipcTarget(cap.ui, K_FUNCUMODE, theirs[1])
    assert never is not None
    assert only is not None
    process = shmipc.process(dead)
    process.kill()
    assert process.join(10)
    assert chorus.ipcSend(msg(b"x"), K_DEFAULTPORT, never) == 1
    assert receive(mine[0])[1].body == b"x"
    assert chorus.ipcSend(msg(b"x"), K_DEFAULTPORT, only) == E.K_EUNREACH
    assert chorus.ipcCall(msg(b"x"), K_DEFAULTPORT, mine[1], -5, 100)[0] == E.K_EINVAL
    assert chorus.portDelete(K_MYACTOR, mine[0]) == 0
