"""The legacy synchronous send: nine lines of its description, one test each. The receiver is this process."""

import copy
import os
import pickle
import signal
import threading
import time
from typing import Any

import pytest

import shmipc
from shmipc.facades import rt_ipc_sync as rt
from shmipc.facades.rt_ipc_sync import ASYNC, SYNC, rt_message, rt_status
from tests.actors import Actor

OK = rt_status.RT_SUCCESS
LIMIT = 20.0  # seconds; a watchdog


class Odd:
    """Arrives as what cannot be pickled."""

    def __reduce__(self) -> Any:
        return threading.Lock, ()


class Sender(Actor):
    def send(self, to: Any, data: bytes, mode: int) -> int:
        return int(rt.rt_ipc_send(to, data, mode))

    def send_together(self, to: Any, data: bytes, all_here: shmipc.Barrier) -> int:
        all_here.wait(LIMIT)
        return self.send(to, data, SYNC)

    def send_and_change(self, to: Any, data: bytearray) -> int:
        """The data changes while the send waits."""
        threading.Timer(0.05, lambda: data.__setitem__(slice(None), bytes(len(data)))).start()
        return int(rt.rt_ipc_send(to, data, SYNC))

    def send_timed(self, to: Any, data: bytes) -> tuple[int, float]:
        started = time.monotonic()
        return int(rt.rt_ipc_send(to, data, SYNC)), time.monotonic() - started

    def take(self) -> bytes:
        """Receive, and release at once."""
        _, msg = rt.rt_ipc_recv(int(LIMIT * 1000))
        assert msg is not None
        assert rt.rt_ipc_release(msg) == OK
        return bytes(msg)

    def ask(self, to: Any, body: Any) -> Any:
        return shmipc.call(to, body, timeout=LIMIT)

    def ask_odd(self, to: Any) -> Any:
        return shmipc.call(to, Odd(), timeout=LIMIT)

    def echo(self, data: bytes) -> bytes:
        return data

    def detail(self) -> str:
        return rt.detail()


def hold(told: Any) -> None:
    """A receiver that never releases what it holds."""
    status, msg = rt.rt_ipc_recv(-1)
    shmipc.send(told, (int(status), bytes(msg or b"")))
    threading.Event().wait()


@pytest.fixture
def sender(system: shmipc.System) -> Any:
    return system.spawn(Sender)


def receive(data: bytes, timeout_ms: int = 10_000) -> rt_message:
    status, msg = rt.rt_ipc_recv(timeout_ms)
    assert (status, msg) == (OK, data), rt.detail()
    assert msg is not None
    return msg


def stays_blocked(future: Any) -> None:
    """Watched for a while: it does not end. A sleep by intent."""
    threading.Event().wait(0.1)
    assert not future.done()


@pytest.mark.row("K21")
def test_1_data_is_copied(sender: Any) -> None:
    sent = sender.send_and_change.submit(shmipc.self(), bytearray(b"before"))
    msg = receive(b"before")
    stays_blocked(sent)
    assert msg == b"before"
    assert rt.rt_ipc_release(msg) == OK
    assert sent.result(LIMIT) == OK


@pytest.mark.row("K21")
def test_2_sender_waits_for_the_release_and_fails_at_once_without_room(sender: Any) -> None:
    me = shmipc.self()
    sent = sender.send.submit(me, b"data", SYNC)
    msg = receive(b"data")
    stays_blocked(sent)
    assert rt.rt_ipc_release(msg) == OK
    assert sent.result(LIMIT) == OK
    while rt.rt_ipc_send(me, b"fill", ASYNC) == OK:
        pass
    full = shmipc.pending()
    status, took = sender.send_timed(me, b"one more")
    assert status == rt_status.RT_NOMEM
    assert took < 1.0
    assert "capacity" in sender.detail()
    assert shmipc.pending() == full


@pytest.mark.row("K21")
def test_3_release_of_an_async_message_and_a_second_one_do_nothing(sender: Any) -> None:
    me = shmipc.self()
    assert sender.send(me, b"async", ASYNC) == OK
    first = receive(b"async")
    assert rt.rt_ipc_release(first) == OK
    sent = sender.send.submit(me, b"sync", SYNC)
    second = receive(b"sync")
    assert rt.rt_ipc_release(first) == OK
    stays_blocked(sent)
    assert rt.rt_ipc_release(second) == OK
    assert sent.result(LIMIT) == OK
    assert rt.rt_ipc_release(second) == OK
    assert rt.rt_ipc_release(b"no message") == rt_status.RT_INVALID  # type: ignore[arg-type]


@pytest.mark.row("K21")
def test_4_next_receive_releases_also_when_it_times_out(sender: Any) -> None:
    sent = sender.send.submit(shmipc.self(), b"data", SYNC)
    receive(b"data")
    stays_blocked(sent)
    started = time.monotonic()
    assert rt.rt_ipc_recv(50) == (rt_status.RT_TIMEOUT, None)
    assert time.monotonic() - started >= 0.05
    assert sent.result(LIMIT) == OK
    assert rt.rt_ipc_recv(0) == (rt_status.RT_WOULDBLOCK, None)


@pytest.mark.row("K21")
def test_5_receiver_that_dies_holding_wakes_the_sender(system: shmipc.System, sender: Any) -> None:
    receiver = system.spawn(hold, shmipc.self())
    sent = sender.send.submit(receiver, b"data", SYNC)
    assert shmipc.receive(timeout=LIMIT).body == (OK, b"data")
    stays_blocked(sent)
    os.kill(shmipc.process(receiver).pid, signal.SIGKILL)
    assert sent.result(LIMIT) == rt_status.RT_PEER_DEAD
    assert "signal 9" in sender.detail()
    assert sender.send(receiver, b"late", ASYNC) == rt_status.RT_PEER_DEAD


@pytest.mark.row("K21")
def test_6_data_stays_when_the_sender_dies_and_its_receiver_goes_on(
    system: shmipc.System, sender: Any, eventually: Any
) -> None:
    data, other = os.urandom(200_000), system.spawn(Sender)
    sender.send.cast(shmipc.self(), data, SYNC)
    msg = receive(data)
    os.kill(shmipc.process(sender).pid, signal.SIGKILL)
    assert shmipc.process(sender).join(LIMIT)
    eventually(lambda: not msg.message.is_open())
    got = other.take.submit()
    assert rt.rt_ipc_send(other, b"third", SYNC) == OK, rt.detail()
    assert got.result(LIMIT) == b"third"
    assert msg == data
    assert rt.rt_ipc_release(msg) == OK
    assert rt.rt_ipc_recv(0) == (rt_status.RT_WOULDBLOCK, None)


@pytest.mark.row("K21")
def test_7_synchronous_send_to_oneself_is_refused(system: shmipc.System) -> None:
    me = shmipc.self()
    assert rt.rt_ipc_send(me, b"data", SYNC) == rt_status.RT_INVALID
    assert shmipc.pending() == 0
    assert rt.rt_ipc_send(me, b"data", ASYNC) == OK
    receive(b"data", 0)
    for wrong in (None, 5, "text"):
        assert rt.rt_ipc_send(me, wrong, ASYNC) == rt_status.RT_INVALID  # type: ignore[arg-type]
    assert rt.rt_ipc_send(me, b"", 2) == rt_status.RT_INVALID
    assert rt.rt_ipc_send("nobody", b"", ASYNC) == rt_status.RT_NOT_FOUND
    assert rt.rt_ipc_send(me, b"data", ASYNC) == OK
    receive(b"data", 10**400)
    assert rt.rt_ipc_recv("soon") == (rt_status.RT_INVALID, None)  # type: ignore[arg-type]


@pytest.mark.row("K21")
def test_8_receiving_anything_else_releases_the_one_that_is_held(system: shmipc.System, sender: Any) -> None:
    me = shmipc.self()
    other: Any = system.spawn(Sender)
    first = sender.send.submit(me, b"first", SYNC)
    receive(b"first")
    second = other.send.submit(me, b"second", SYNC)
    stays_blocked(first)
    receive(b"second")
    assert first.result(LIMIT) == OK
    stays_blocked(second)
    assert rt.rt_ipc_send(me, b"third", ASYNC) == OK
    receive(b"third")
    assert second.result(LIMIT) == OK


@pytest.mark.row("K21")
def test_8_receipt_of_one_who_waited_already_releases_the_one_that_is_held(system: shmipc.System, sender: Any) -> None:
    me, other = shmipc.self(), system.spawn(Sender)
    told: list[tuple[rt_status, rt_message | None]] = []
    waiting = [threading.Thread(target=lambda: told.append(rt.rt_ipc_recv(10_000))) for _ in range(2)]
    for thread in waiting:
        thread.start()
        threading.Event().wait(0.1)  # by intent: it waits
    first = sender.send.submit(me, b"first", SYNC)
    waiting[0].join(LIMIT)
    stays_blocked(first)
    second = other.send.submit(me, b"second", SYNC)
    waiting[1].join(LIMIT)
    assert told == [(OK, b"first"), (OK, b"second")]
    assert first.result(LIMIT) == OK
    stays_blocked(second)
    assert rt.rt_ipc_recv(0) == (rt_status.RT_WOULDBLOCK, None)
    assert second.result(LIMIT) == OK


@pytest.mark.row("K21")
@pytest.mark.parametrize("forked", [False, True])
def test_message_that_was_held_in_another_system_is_no_failure_of_the_next_receive(forked: bool) -> None:
    former = shmipc.System()
    sender: Any = former.spawn(Sender)
    sent = sender.send.submit(shmipc.self(), b"held", SYNC)
    receive(b"held")
    if not forked:
        former.kill()
        assert receive_in_another_system() == OK
        return
    child = os.fork()
    if child == 0:
        try:
            os._exit(receive_in_another_system())
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == OK
    stays_blocked(sent)
    assert rt.rt_ipc_recv(0)[0] == rt_status.RT_WOULDBLOCK
    assert sent.result(LIMIT) == OK
    former.kill()


def receive_in_another_system() -> int:
    with shmipc.System():
        shmipc.send(shmipc.self(), b"data")
        return rt.rt_ipc_recv(0)[0]


@pytest.mark.row("K21")
def test_two_that_send_to_each_other_are_told(system: shmipc.System, sender: Any) -> None:
    other: Any = system.spawn(Sender)
    with shmipc.Barrier(2) as all_here:  # the loop of one who is not within refuses the other's
        sent = [one.send_together.submit(to, b"data", all_here) for one, to in ((sender, other), (other, sender))]
        statuses = [future.result(LIMIT) for future in sent]
    assert rt_status.RT_DEADLOCK in statuses
    assert OK not in statuses


@pytest.mark.row("K21")
def test_held_message_is_copied_and_sent_as_its_bytes(system: shmipc.System, sender: Any) -> None:
    other: Any = system.spawn(Sender)
    sent = sender.send.submit(shmipc.self(), b"data", SYNC)
    msg = receive(b"data")
    for copied in (copy.copy(msg), copy.deepcopy(msg), pickle.loads(pickle.dumps(msg)), other.echo(msg)):
        assert (type(copied), copied) == (bytes, b"data")
    stays_blocked(sent)
    assert rt.rt_ipc_release(msg) == OK
    assert sent.result(LIMIT) == OK


@pytest.mark.row("K21")
def test_9_success_means_released_not_processed(sender: Any) -> None:
    sent = sender.send.submit(shmipc.self(), b"data", SYNC)
    msg = receive(b"data")
    assert rt.rt_ipc_release(msg) == OK
    assert sent.result(LIMIT) == OK
    assert bytes(msg) == b"data", "it may be used after the release"


@pytest.mark.row("K21")
def test_messages_of_other_interfaces_are_received_and_their_callers_answered(sender: Any) -> None:
    me = shmipc.self()
    for body in (5, "text"):
        shmipc.send(me, body)
        assert pickle.loads(receive(pickle.dumps(body))) == body
    asked = sender.ask.submit(me, "question")
    msg = receive(pickle.dumps("question"))
    assert rt.rt_ipc_release(msg) == OK
    assert asked.result(LIMIT) is None
    odd = sender.ask_odd.submit(me)
    assert rt.rt_ipc_recv(10_000) == (rt_status.RT_INVALID, None)
    with pytest.raises(TypeError):
        odd.result(LIMIT)


@pytest.mark.row("K21")
def test_send_that_a_signal_handler_ends_is_not_received_and_leaves_nothing(system: shmipc.System) -> None:
    box = shmipc.Mailbox.create("nobody-reads")

    def handle(number: int, frame: object) -> None:
        raise LookupError("on purpose")

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert rt.rt_ipc_send("nobody-reads", b"data", SYNC) == rt_status.RT_FAILED
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert "on purpose" in rt.detail()
    with pytest.raises(shmipc.MailboxEmpty):
        box.receive_message(timeout=0)
    assert shmipc.pending() == 0
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(timeout=0)
