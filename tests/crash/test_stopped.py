"""A worker that was stopped where others need it to move: they wait for it, or pass it by, and go on afterwards."""

import contextlib
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import psutil
import pytest

import shmipc
from shmipc import _native
from shmipc.base.deadlines import Deadline
from shmipc.facades import chorus
from tests.actors import Actor
from tests.transport.hosts import Wait

pytestmark = [pytest.mark.allows_rescue, pytest.mark.timeout(60)]

LIMIT = 10.0
LOCKED = ["block_record", "block_unlock"]


class Stopper(Actor):
    """Stops while it adds a holder to a block."""

    def open(self, point: str, name: str) -> int:
        _native.kill_point_arm(point, 1, signal.SIGSTOP)
        with shmipc.Mailbox.open(name) as box:
            return box.count()

    def open_named(self, point: str, kind: str, **name: Any) -> None:
        _native.kill_point_arm(point, 1, signal.SIGSTOP)
        getattr(shmipc, kind).open(**name).close()

    def open_port(self, point: str, id: int) -> None:
        _native.kill_point_arm(point, 1, signal.SIGSTOP)
        shmipc.Port.open(id).close()

    def notify(self, point: str, box: shmipc.Mailbox) -> None:
        _native.kill_point_arm(point, 1, signal.SIGSTOP)
        shmipc.notify(box, 4)

    def post(self, point: str, port: shmipc.Port) -> None:
        _native.kill_point_arm(point, 1, signal.SIGSTOP)
        port.send("of the stopped")

    def make_port(self) -> shmipc.Port:
        self.port = shmipc.Port.create()
        return self.port

    def know_port(self, port: shmipc.Port) -> None:
        self.port = port

    def take(self, point: str, count: int) -> list[Any]:
        """Messages of the port, with their numbers, as far as they are there."""
        if point:
            _native.kill_point_arm(point, 1, signal.SIGSTOP)
        found = []
        for _ in range(count):
            try:
                message = self.port.receive(0)
            except shmipc.MailboxEmpty:
                break
            found.append((message.body, message.count))
        return found

    def ask(self, port: shmipc.Port) -> Any:
        return port.call("anybody?", LIMIT)

    def read(self, point: str, bus: shmipc.Bus) -> int:
        with bus.subscribe() as reader:
            bus.publish(b"0")
            _native.kill_point_arm(point, 1, signal.SIGSTOP)
            return int(reader.receive(LIMIT)[0])

    def destroy(self, point: str, bus: shmipc.Bus) -> None:
        _native.kill_point_arm(point, 1, signal.SIGSTOP)
        bus.destroy()

    def keep(self, array: Any) -> None:
        self.array = array

    def pass_on(self, point: str, box: shmipc.Mailbox) -> None:
        _native.kill_point_arm(point, 1, signal.SIGSTOP)
        box.send(self.array)


def is_stopped(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


class Waiting:
    """Something done in a thread that waits until the stopped one goes on."""

    def __init__(self, act: Any) -> None:
        self.value: Any = None
        self.thread = threading.Thread(target=self.run, args=(act,))
        self.thread.start()

    def run(self, act: Any) -> None:
        try:
            self.value = act()
        except Exception as error:
            self.value = error

    def result(self, pid: int) -> Any:
        self.thread.join(0.3)
        assert self.thread.is_alive(), "it waits as long as the other is stopped"
        os.kill(pid, signal.SIGCONT)
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()
        return self.value


@pytest.mark.row("M19")
@pytest.mark.parametrize("point", LOCKED)
def test_open_of_a_mailbox_waits_for_one_who_was_stopped_while_he_opened_it(
    system: shmipc.System, eventually: Any, point: str
) -> None:
    stopper: Any = system.spawn(Stopper)
    pid = stopper.pid()
    with shmipc.Mailbox.create("box") as box:
        box.send(1)
        opened = stopper.open.submit(point, "box")
        eventually(lambda: is_stopped(pid))
        again = Waiting(lambda: shmipc.Mailbox.open("box")).result(pid)
        assert again.receive() == 1
        again.close()
        assert opened.result(LIMIT) in (0, 1)


@pytest.mark.row("M19")
@pytest.mark.parametrize("point", LOCKED)
def test_array_is_sent_and_received_when_one_who_was_stopped_while_he_sent_it_goes_on(
    system: shmipc.System, eventually: Any, point: str
) -> None:
    stopper: Any = system.spawn(Stopper)
    pid, array = stopper.pid(), shmipc.zeros(1000, np.uint8)
    with shmipc.Mailbox.create() as box, shmipc.Mailbox.create() as own:
        stopper.keep(array)
        own.send(array)
        passed = stopper.pass_on.submit(point, box)
        eventually(lambda: is_stopped(pid))
        received = Waiting(own.receive)
        Waiting(lambda: own.send(array)).result(pid)
        received.thread.join(LIMIT)
        assert received.value.shape == array.shape
        assert own.receive().shape == array.shape
        passed.result(LIMIT)
        assert box.receive().shape == array.shape


class Poker(Actor):
    """Stops while it opens the mailbox of another."""

    def poke(self, other: Any) -> None:
        _native.kill_point_arm("block_record", 1, signal.SIGSTOP)
        shmipc.send(other, "poked")


@pytest.mark.row("M19")
def test_timeout_holds_while_one_was_stopped_in_the_midst_of_opening_the_mailbox(
    system: shmipc.System, eventually: Any
) -> None:
    other: Any = system.options(name="other").spawn(Actor)
    poker: Any = system.spawn(Poker)
    pid, first = poker.pid(), other.pid()
    with shmipc.Mailbox.create("box"):
        poked = poker.poke.submit(other)
        eventually(lambda: is_stopped(pid))
        try:
            for act in (
                lambda: system.lookup("other").pid.call(timeout=0.1),
                lambda: system.lookup("other").pid.submit(timeout=0.1).result(),
                lambda: system.lookup("other").pid.options(timeout=0.1)(),
                lambda: shmipc.send(system.lookup("other"), 1, timeout=0.1),
                lambda: shmipc.send("other", 1, timeout=0.1),
                lambda: shmipc.call("other", 1, timeout=0.1),
            ):
                with pytest.raises(shmipc.Timeout):
                    act()
            assert not shmipc.process(other).ask_to_stop(Deadline(0.1))
            assert other.pid() == first, "who has it open already goes on"
        finally:
            os.kill(pid, signal.SIGCONT)
        poked.result(LIMIT)
        assert system.lookup("other").pid.call(timeout=LIMIT) == first


@pytest.mark.row("M19")
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("Bus", lambda: shmipc.Bus.create("named")),
        ("Event", lambda: shmipc.Event(name="named")),
        ("Semaphore", lambda: shmipc.Semaphore(1, name="named")),
        ("PortGroup", lambda: shmipc.PortGroup.create()),
    ],
)
def test_timeout_holds_while_one_was_stopped_in_the_midst_of_opening_the_same(
    system: shmipc.System, eventually: Any, kind: str, make: Any
) -> None:
    stopper: Any = system.spawn(Stopper)
    pid = stopper.pid()
    with contextlib.closing(make()) as made:
        name: Any = {"id": made.id} if kind == "PortGroup" else {"name": "named"}
        opened = stopper.open_named.submit("block_record", kind, **name)
        eventually(lambda: is_stopped(pid))
        try:
            with pytest.raises(shmipc.Timeout, match="in the midst of opening"):
                getattr(shmipc, kind).open(timeout=0.1, **name)
        finally:
            os.kill(pid, signal.SIGCONT)
        opened.result(LIMIT)
        getattr(shmipc, kind).open(timeout=LIMIT, **name).close()


@pytest.mark.row("M19")
def test_timeout_of_a_send_holds_while_one_was_stopped_who_sends_the_same_array(
    system: shmipc.System, eventually: Any
) -> None:
    stopper: Any = system.spawn(Stopper)
    pid, array = stopper.pid(), shmipc.zeros(1000, np.uint8)
    with shmipc.Mailbox.create() as box:
        stopper.keep(array)
        passed = stopper.pass_on.submit("block_record", box)
        eventually(lambda: is_stopped(pid))
        try:
            for body in (array, {"a set is pickled": {1}, "array": array}):
                with pytest.raises(shmipc.Timeout) as caught:
                    box.send(body, timeout=0.1)
                assert caught.value.message is body
                with pytest.raises(shmipc.Timeout):
                    box.call(body, timeout=0.1)
        finally:
            os.kill(pid, signal.SIGCONT)
        passed.result(LIMIT)
        assert box.receive(timeout=LIMIT).shape == array.shape
        assert box.count() == 0


class Sender(Actor):
    def put(self, box: shmipc.Mailbox, body: Any) -> None:
        box.send(body)


@pytest.mark.row("M19")
@pytest.mark.parametrize("slots", [1, 4])
def test_line_of_senders_moves_on_when_its_first_was_stopped(
    system: shmipc.System, eventually: Any, slots: int
) -> None:
    with shmipc.Mailbox.create(slots=slots) as box:
        for _ in range(slots):
            box.send("fill")
        senders: list[Any] = [system.spawn(Sender) for _ in range(slots + 2)]
        pids = [sender.pid() for sender in senders]
        done = []
        for number, sender in enumerate(senders):
            done.append(sender.put.submit(box, number))
            eventually(lambda: waits(system, pids[number]))  # noqa: B023
        os.kill(pids[0], signal.SIGSTOP)
        eventually(lambda: is_stopped(pids[0]))
        got = [box.receive(timeout=LIMIT) for _ in range(2 * slots + 1)]
        assert got[:slots] == ["fill"] * slots
        assert sorted(got[slots:]) == list(range(1, slots + 2))
        os.kill(pids[0], signal.SIGCONT)
        assert box.receive(timeout=LIMIT) == 0
        for future in done:
            future.result(LIMIT)


def waits(system: shmipc.System, pid: int) -> bool:
    """Has it taken what it was told, and sleeps?"""
    depth = next(entry["depth"] for entry in system._membership.member.members() if entry["pid"] == pid)
    return bool(depth == 0 and psutil.Process(pid).status() == psutil.STATUS_SLEEPING)


@pytest.mark.row("M19", "J2")
def test_bits_are_told_though_who_set_them_first_was_stopped_before_he_told(
    system: shmipc.System, eventually: Any
) -> None:
    stopper: Any = system.spawn(Stopper)
    pid = stopper.pid()
    with shmipc.Mailbox.create() as box:
        told = stopper.notify.submit("notify_tell", box)
        eventually(lambda: is_stopped(pid))
        shmipc.notify(box, 4)
        assert box.receive_message(timeout=LIMIT).body == 4
        os.kill(pid, signal.SIGCONT)
        told.result(LIMIT)


@pytest.mark.row("M19", "D13")
@pytest.mark.parametrize("point", LOCKED)
def test_port_is_deleted_though_one_was_stopped_while_he_opened_it(
    system: shmipc.System, eventually: Any, point: str
) -> None:
    stopper: Any = system.spawn(Stopper)
    caller: Any = system.spawn(Stopper)
    pid = stopper.pid()
    with shmipc.Port.create() as port:
        asked = caller.ask.submit(port)
        eventually(lambda: len(port) == 1)
        opened = stopper.open_port.submit(point, port.id)
        eventually(lambda: is_stopped(pid))
        port.delete()
        with pytest.raises(shmipc.Closed):
            asked.result(LIMIT)
        with pytest.raises(shmipc.Unreachable):
            port.send("late")
        os.kill(pid, signal.SIGCONT)
        with contextlib.suppress(shmipc.Unreachable):
            opened.result(LIMIT)


@pytest.mark.row("M19", "D24")
def test_sends_that_do_not_wait_pass_by_a_port_that_one_who_was_stopped_is_opening(
    system: shmipc.System, eventually: Any
) -> None:
    stopper: Any = system.spawn(Stopper)
    pid = stopper.pid()
    with shmipc.Port.create(site="here") as port, shmipc.PortGroup.create() as group:
        ui = port.id
        group.insert(port)
        opened = stopper.open_port.submit("block_record", ui)
        eventually(lambda: is_stopped(pid))
        try:
            result = group.broadcast("x")
            assert (result.delivered, result.full) == ((), (ui,))
            with pytest.raises(shmipc.MailboxFull):
                group.send("x", 0)
            with pytest.raises(shmipc.MailboxFull):
                group.send("x", 0, only="here")
            with pytest.raises(shmipc.Unreachable):
                group.send("x", 0, never="here")
            for act in (group.send, group.call):
                started = time.monotonic()
                with pytest.raises(shmipc.Timeout):
                    act("x", 0.1)
                assert time.monotonic() - started >= 0.1
            assert chorus.ipcSend(chorus.KnMsgDesc(b"x"), 0, ui) == chorus.KnError.K_EBUSY
            assert chorus.ipcCall(chorus.KnMsgDesc(b"x"), 0, ui, None, 100)[0] == chorus.KnError.K_ETIMEOUT
        finally:
            os.kill(pid, signal.SIGCONT)
        opened.result(LIMIT)
        assert group.broadcast("all").delivered == (ui,)
        assert port.receive(0).body == "all"
        port.delete()


@pytest.mark.row("M19", "D16")
def test_port_migrates_without_what_stands_behind_one_who_was_stopped_while_he_sent(
    system: shmipc.System, eventually: Any
) -> None:
    stopper: Any = system.spawn(Stopper)
    other: Any = system.spawn(Stopper)
    pid = stopper.pid()
    with shmipc.Port.create() as port:
        posted = stopper.post.submit("send_copy", port)
        eventually(lambda: is_stopped(pid))
        try:
            for number in range(5):
                port.send(number, 0)
            asked = [port.submit("a"), port.submit("b")]
            assert port.migrate(other, messages=False)[0] == 1
            for future in asked:
                with pytest.raises(shmipc.Closed):
                    future.result(LIMIT)
            other.know_port(port)
            assert other.take("", 10) == []
            port.send("sent afterwards", 0)
        finally:
            os.kill(pid, signal.SIGCONT)
        posted.result(LIMIT)
        assert other.take("", 10) == [("sent afterwards", 1)]
        assert len(port) == 0


@pytest.mark.row("D22")
def test_request_whose_caller_leaves_while_it_is_received_leaves_no_gap_in_the_numbers(
    system: shmipc.System, eventually: Any
) -> None:
    stopper: Any = system.spawn(Stopper)
    pid, port = stopper.pid(), stopper.make_port()
    asked = port.submit("left")
    taken = stopper.take.submit("cell_serve", 2)
    eventually(lambda: is_stopped(pid))
    try:
        assert asked.cancel()
        port.send("next", 0)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert taken.result(LIMIT) == [("left", 1), ("next", 2)]
    port.close()


@pytest.mark.row("L15")
@pytest.mark.parametrize("point", LOCKED)
def test_writer_goes_on_though_a_reader_was_stopped_while_he_took_a_frame_that_has_ended(
    system: shmipc.System, eventually: Any, point: str
) -> None:
    """The frame's block, locked by him, was kept warm: the next frame but one was to lie in it."""
    stopper: Any = system.spawn(Stopper)
    pid = stopper.pid()
    with shmipc.Bus.create(frames=2) as bus:
        read = stopper.read.submit(point, bus)
        eventually(lambda: is_stopped(pid))
        for number in range(1, 8):
            bus.publish(bytes([48 + number]), timeout=LIMIT / 2)
        os.kill(pid, signal.SIGCONT)
        assert read.result(LIMIT) == 48 + 6  # the oldest that is left


@pytest.mark.row("K12")
def test_reader_that_joins_a_bus_while_it_is_closed_here_leaves_no_place_behind(
    system: shmipc.System, eventually: Any
) -> None:
    stopper: Any = system.spawn(Stopper)
    pid = stopper.pid()
    with shmipc.Bus.create("bus", frames=2) as bus:
        destroyed = stopper.destroy.submit("bus_close", bus)
        eventually(lambda: is_stopped(pid))
        again = shmipc.Bus.open("bus")
        joins = Wait(lambda: again.subscribe(patience=60.0)).begun()
        again.close()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(shmipc.PeerDead):
            destroyed.result(LIMIT)
        assert joins.end(LIMIT)[0] == "Closed"
        assert bus.readers == 0
        bus.destroy()
