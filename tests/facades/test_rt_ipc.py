"""The tagged facade: what the seed's functions return, and that they raise nothing."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import shmipc
from shmipc.facades import resea, rt_ipc_sync
from shmipc.facades import rt_ipc as rt
from shmipc.facades.rt_ipc import rt_message_class, rt_status
from tests.actors import Actor, Client

CAST, CALL, REPLY = rt.RT_MESSAGE_CLASS_CAST, rt.RT_MESSAGE_CLASS_CALL, rt.RT_MESSAGE_CLASS_REPLY
TIMER, EXIT, WILDCARD = rt.RT_MESSAGE_CLASS_TIMER, rt.RT_MESSAGE_CLASS_EXIT, rt.RT_MESSAGE_CLASS_WILDCARD
NONE, GENERATE, ANY_TAG = rt.RT_MESSAGE_TAG_NONE, rt.RT_MESSAGE_TAG_GENERATE, rt.RT_MESSAGE_TAG_WILDCARD
ANYBODY = rt.RT_SENDER_WILDCARD
OK = rt_status.RT_SUCCESS
GENERATED = 1 << 60


def server(_: Any = None) -> None:
    """Answers every call with what it was sent; ends when it is told to."""
    while True:
        status, _, class_, tag, msg = rt.rt_ipc_recv(ANYBODY, WILDCARD, ANY_TAG, -1)
        if status == rt_status.RT_CLOSED:
            return
        assert (status, class_) == (OK, CALL), rt.detail()
        assert msg is not None
        if msg == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        assert rt.rt_ipc_reply(msg, b"answer to " + msg) == OK
        assert rt.rt_ipc_reply(msg, b"again") == rt_status.RT_ABORTED
        assert tag > 0


class Peer(Client):
    def send(self, to: Any, body: Any, kind: int = 0, tag: int | None = None) -> Any:
        return rt.rt_ipc_send(to, kind, NONE if tag is None else tag, body)


@pytest.mark.row("A1")
def test_classes_arrive_as_they_were_sent(system: shmipc.System) -> None:
    peer: Any = system.spawn(Peer)
    me = shmipc.self()
    assert [int(entry) for entry in rt_message_class] == [0, 1, 2, 3, 4, 5]
    assert rt.RT_MESSAGE_REPLY == REPLY
    for class_ in (CAST, CALL, REPLY, TIMER):
        assert tuple(peer.send(me, b"body", class_, 9)) == (OK, 9)
        found = rt.rt_ipc_sel_recv(ANYBODY, WILDCARD, ANY_TAG, 0)
        assert found == (OK, peer, class_, 9, b"body")
        assert found[2] is class_
    shmipc.monitor(peer)
    assert shmipc.process(peer).stop()
    assert rt.rt_ipc_sel_recv(peer, EXIT, NONE, 5000) == (OK, peer, EXIT, NONE, b"returned")


@pytest.mark.row("A2", "A5")
def test_what_cannot_be_sent_is_invalid_and_queues_nothing(system: shmipc.System) -> None:
    me = shmipc.self()
    for class_ in (WILDCARD, EXIT, 6, 7, -1, True, None, "CAST"):
        assert rt.rt_ipc_send(me, class_, 5, b"body") == (rt_status.RT_INVALID, 5)
        assert rt.detail()
    for tag in (0, GENERATED, 2 * GENERATED, 2**61 - 1, ANY_TAG, ANYBODY, -1, None, True, "5", 1.0):
        assert rt.rt_ipc_send(me, CAST, tag, b"body") == (rt_status.RT_INVALID, tag)
    assert rt.rt_ipc_send(me, CAST, 5, None) == (rt_status.RT_INVALID, 5)
    assert rt.rt_ipc_send(me, CAST, 5, "text") == (rt_status.RT_INVALID, 5)
    assert rt.rt_ipc_send(ANYBODY, CAST, 5, b"") == (rt_status.RT_INVALID, 5)
    assert rt.rt_ipc_send("nobody", CAST, 5, b"") == (rt_status.RT_NOT_FOUND, 5)
    assert shmipc.pending() == 0
    assert len({ANYBODY, ANY_TAG, NONE, GENERATE}) == 4
    assert all(value >> 61 for value in (ANYBODY, ANY_TAG, NONE, GENERATE))
    for tag in (1, GENERATED - 1):
        assert rt.rt_ipc_send(me, CAST, tag, b"body") == (OK, tag)
        assert rt.rt_ipc_sel_recv(me, CAST, tag, 0) == (OK, me, CAST, tag, b"body")


@pytest.mark.row("A3", "A4")
def test_tags_none_and_generate(system: shmipc.System) -> None:
    peer: Any = system.spawn(Peer)
    me = shmipc.self()
    assert tuple(peer.send(me, b"cast")) == (OK, NONE)
    assert rt.rt_ipc_recv(ANYBODY, WILDCARD, ANY_TAG, 0) == (OK, peer, CAST, NONE, b"cast")
    status, tag = rt.rt_ipc_canonical_send(me, CAST, GENERATE, b"body")
    assert status == OK
    assert GENERATED < tag < 2 * GENERATED
    assert rt.rt_ipc_sel_recv(me, CAST, tag, 0) == (OK, me, CAST, tag, b"body")
    assert rt.rt_ipc_send("nobody", CAST, GENERATE, b"") == (rt_status.RT_NOT_FOUND, GENERATE), "unchanged on failure"


@pytest.mark.row("A9")
@pytest.mark.parametrize("receive", [rt.rt_ipc_sel_recv, rt.rt_ipc_recv, rt.rt_ipc_recv_reply])
def test_in_out_parameters_hold_the_message_or_stay(system: shmipc.System, receive: Callable[..., Any]) -> None:
    peer: Any = system.spawn(Peer)
    me = shmipc.self()
    started = time.monotonic()
    assert receive(ANYBODY, WILDCARD, ANY_TAG, 50) == (rt_status.RT_TIMEOUT, ANYBODY, WILDCARD, ANY_TAG, None)
    assert time.monotonic() - started >= 0.05
    assert receive(ANYBODY, WILDCARD, ANY_TAG, 0) == (rt_status.RT_WOULDBLOCK, ANYBODY, WILDCARD, ANY_TAG, None)
    peer.send(me, b"first", REPLY, 7)
    peer.send(me, b"second", TIMER)
    assert receive(ANYBODY, WILDCARD, ANY_TAG, -1) == (OK, peer, REPLY, 7, b"first")
    assert receive(ANYBODY, WILDCARD, ANY_TAG, 1000) == (OK, peer, TIMER, NONE, b"second")
    for wrong in ((5, WILDCARD, ANY_TAG), (ANYBODY, 9, ANY_TAG), (ANYBODY, WILDCARD, 0), ("me", None, "tag")):
        expected = rt_status.RT_WOULDBLOCK if receive is rt.rt_ipc_recv else rt_status.RT_INVALID
        assert receive(*wrong, 0) == (expected, *wrong, None), "rt_ipc_recv ignores them on entry"
    assert receive(ANYBODY, WILDCARD, ANY_TAG, "soon") == (rt_status.RT_INVALID, ANYBODY, WILDCARD, ANY_TAG, None)


def test_rt_ipc_recv_ignores_what_is_asked_for(system: shmipc.System) -> None:
    peer: Any = system.spawn(Peer)
    peer.send(shmipc.self(), b"cast", CAST, 3)
    assert rt.rt_ipc_recv(shmipc.self(), REPLY, 99, 0) == (OK, peer, CAST, 3, b"cast")


@pytest.mark.row("A17", "A18")
def test_empty_and_oversize_data(system: shmipc.System) -> None:
    me = shmipc.self()
    assert rt.rt_ipc_cast(me, b"") == OK
    status, *_, msg = rt.rt_ipc_recv(ANYBODY, WILDCARD, ANY_TAG, 0)
    assert (status, msg) == (OK, b"")
    assert rt.rt_ipc_recv(ANYBODY, WILDCARD, ANY_TAG, 0)[0] == rt_status.RT_WOULDBLOCK
    assert rt.rt_ipc_cast(me, bytes(shmipc.LIMITS.body_bytes + 1)) == rt_status.RT_TOO_LARGE
    assert shmipc.pending() == 0


def test_call_returns_the_answer_and_leaves_other_messages(system: shmipc.System) -> None:
    other = system.spawn(server)
    me = shmipc.self()
    rt.rt_ipc_cast(me, b"waits")
    assert rt.rt_ipc_call(other, b"question", 5000) == (OK, b"answer to question")
    assert rt.rt_ipc_call(me, b"myself", 1000) == (rt_status.RT_INVALID, None)
    assert rt.rt_ipc_call(other, b"", 0) == (rt_status.RT_INVALID, None)
    status, tag = rt.rt_ipc_send(other, CALL, GENERATE, b"in steps")
    assert status == OK
    assert rt.rt_ipc_recv_reply(other, REPLY, tag, 5000) == (OK, other, REPLY, tag, b"answer to in steps")
    status, *_, msg = rt.rt_ipc_recv(ANYBODY, WILDCARD, ANY_TAG, 0)
    assert (status, msg) == (OK, b"waits")
    assert msg is not None
    assert rt.rt_ipc_reply(msg, b"") == rt_status.RT_INVALID
    assert rt.rt_ipc_reply(b"", b"") == rt_status.RT_INVALID  # type: ignore[arg-type]
    assert rt.rt_ipc_send(other, CALL, 5, b"die") == (OK, 5)
    assert rt.rt_ipc_recv_reply(other, REPLY, 5, 5000) == (rt_status.RT_PEER_DEAD, other, REPLY, 5, None)
    assert "signal" in rt.detail()
    assert rt.rt_ipc_call(other, b"late", 5000) == (rt_status.RT_PEER_DEAD, None)
    silent = system.spawn(Actor)
    assert shmipc.process(silent).is_alive()
    quiet: Any = system.spawn(Holding)
    started = time.monotonic()
    assert rt.rt_ipc_call(quiet, b"anybody?", 100) == (rt_status.RT_TIMEOUT, None)
    assert time.monotonic() - started >= 0.1


class Wicked(Actor):
    """Answers with what would end a program."""

    def on_message(self, message: shmipc.Message) -> None:
        if message.is_call:
            error = SystemExit(3) if "exit" in str(message.body) else KeyboardInterrupt("on purpose")
            shmipc.reply_error(message, error)


def test_answer_that_would_end_the_caller_is_a_status(system: shmipc.System) -> None:
    wicked = system.spawn(Wicked)
    for data, name in ((b"exit", "SystemExit"), (b"interrupt", "KeyboardInterrupt")):
        assert rt.rt_ipc_call(wicked, data, 5000) == (rt_status.RT_FAILED, None)
        assert name in rt.detail()
        tag = rt.rt_ipc_send(wicked, CALL, GENERATE, data)[1]
        assert rt.rt_ipc_recv_reply(wicked, REPLY, tag, 5000)[0] == rt_status.RT_FAILED
        assert rt_ipc_sync.rt_ipc_send(wicked, data, rt_ipc_sync.SYNC) == rt_ipc_sync.rt_status.RT_FAILED
        assert name in rt_ipc_sync.detail()
        question = resea.message(1, data=data)
        assert resea.ipc_call(wicked, question) == (resea.error_t.ERR_UNAVAILABLE, question)
        assert name in resea.detail()


class Holding(Actor):
    def on_message(self, message: shmipc.Message) -> None:
        self.message = message


def test_full_mailbox_is_nomem_at_once_and_detail_is_each_thread_s(system: shmipc.System) -> None:
    me = shmipc.self()
    while (status := rt.rt_ipc_cast(me, b"flood")) == OK:
        pass
    assert status == rt_status.RT_NOMEM
    assert "capacity" in rt.detail()
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.append(rt.detail()))
    thread.start()
    thread.join()
    assert seen == [""]


def test_received_data_travels_as_bytes(system: shmipc.System) -> None:
    me = shmipc.self()
    assert rt.rt_ipc_cast(me, b"data") == OK
    _, _, _, _, data = rt.rt_ipc_recv(ANYBODY, WILDCARD, ANY_TAG, 0)
    shmipc.send(me, {"data": data})
    assert shmipc.receive(timeout=0).body == {"data": b"data"}


class Refusing(Actor):
    def on_message(self, message: shmipc.Message) -> None:
        if message.is_call:
            message.reply_error(getattr(shmipc, message.body.decode())("its own"))


def test_failure_of_a_call_is_not_the_receive_s_own(system: shmipc.System) -> None:
    refusing = system.spawn(Refusing)
    for name, status in {
        "Closed": rt_status.RT_PEER_DEAD,
        "Timeout": rt_status.RT_FAILED,
        "MailboxEmpty": rt_status.RT_FAILED,
        "Starved": rt_status.RT_FAILED,
        "NotFound": rt_status.RT_NOT_FOUND,
        "Aborted": rt_status.RT_ABORTED,
    }.items():
        assert rt.rt_ipc_send(refusing, CALL, 7, name.encode())[0] == OK
        assert rt.rt_ipc_sel_recv(ANYBODY, WILDCARD, 7, 20_000)[0] == status
        assert rt.detail() == f"{name}: its own"
