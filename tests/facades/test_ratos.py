"""The ratos facade, row by row: handles, queues, messages that carry handles, shared memory, sockets."""

import os
import signal
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc.facades import ratos
from shmipc.facades.ratos import (
    AF_INET,
    AF_UNIX,
    RAT_INVALID_HANDLE,
    RAT_IPC_ERR_ABANDONED,
    RAT_IPC_ERR_ACCESS_DENIED,
    RAT_IPC_ERR_ALREADY_EXISTS,
    RAT_IPC_ERR_BUFFER_TOO_SMALL,
    RAT_IPC_ERR_CANCELLED,
    RAT_IPC_ERR_INVALID_ARG,
    RAT_IPC_ERR_NO_RESOURCES,
    RAT_IPC_ERR_NOT_CONNECTED,
    RAT_IPC_ERR_NOT_FOUND,
    RAT_IPC_ERR_TIMEOUT,
    RAT_IPC_ERR_UNKNOWN,
    RAT_IPC_OK,
    SOCK_DGRAM,
    SOCK_STREAM,
    RatHandle,
    RatMessage,
)
from shmipc.facades.ratos.handles import table
from shmipc.transport.rights import named_address
from tests.actors import usage
from tests.conftest import wait_until
from tests.facades.rats import LIMIT_MS, Rat, got, msg

LIMIT = LIMIT_MS / 1000
COUNTS = ("mailboxes", "blocks", "leases", "undelivered")


@pytest.fixture(autouse=True, scope="module")
def rats(home: shmipc.System) -> list[Any]:
    return [home.spawn(Rat) for _ in range(2)]


@pytest.fixture
def rat(rats: list[Any]) -> Any:
    return rats[0]


@pytest.fixture
def q(home: shmipc.System) -> Iterator[RatHandle]:
    """A queue that others open by the name "q"."""
    made = got(ratos.RatCreateNamedMessageQueue("q", 32))
    yield made
    ratos.RatCloseMessageQueue(made)


def ids(q: RatHandle, **how: Any) -> list[int]:
    found = []
    while True:
        status, m = ratos.RatGetMessage(q, 0, **how)
        if status != RAT_IPC_OK:
            assert status == RAT_IPC_ERR_TIMEOUT
            return found
        assert m is not None
        found.append(m.header.message)


# --- queues ----------------------------------------------------------------------------------------------------


@pytest.mark.row("F1")
def test_unnamed_queue_is_of_its_process_alone(q: RatHandle, rat: Any) -> None:
    local = got(ratos.RatCreateMessageQueue(4))
    assert ratos.RatPostMessage(q, msg(1, local)) == RAT_IPC_ERR_ACCESS_DENIED
    assert ratos.RatPostMessage(q, msg(1, 0, local)) == RAT_IPC_ERR_ACCESS_DENIED
    assert ids(q) == [], "nothing was posted"
    assert rat.use_number("RatPeekMessage", local) == RAT_IPC_ERR_INVALID_ARG, "a number means nothing elsewhere"
    assert rat.use_number("RatPeekMessage", int(local)) == RAT_IPC_ERR_INVALID_ARG
    threads = [threading.Thread(target=lambda: ratos.RatPostMessage(local, msg(5)))]
    threads[0].start()
    assert got(ratos.RatGetMessage(local, LIMIT_MS)).header.message == 5
    threads[0].join()
    assert ratos.RatCloseMessageQueue(local) == RAT_IPC_OK


@pytest.mark.row("F2")
def test_one_of_twenty_processes_creates_a_name(rats: list[Any], system: shmipc.System) -> None:
    many: list[Any] = [system.spawn(Rat) for _ in range(20)]
    assert many[0].keep("q", "RatOpenNamedMessageQueue", "raced") == RAT_IPC_ERR_NOT_FOUND
    asked = [one.keep.submit("q", "RatCreateNamedMessageQueue", "raced", 8) for one in many]
    shared = [one.keep.submit("m", "RatCreateSharedMemory", "/raced_memory", 4096) for one in many]
    for futures in (asked, shared):
        assert sorted(future.result(LIMIT) for future in futures) == [0] + [int(RAT_IPC_ERR_ALREADY_EXISTS)] * 19
    assert many[0].keep("q", "RatCreateNamedMessageQueue", "raced", 8) == RAT_IPC_ERR_ALREADY_EXISTS
    assert [one.keep("q", "RatOpenNamedMessageQueue", "raced") for one in many] == [RAT_IPC_OK] * 20


@pytest.mark.row("F3")
def test_post_returns_at_once_and_capacity_is_exact(home: shmipc.System) -> None:
    q = got(ratos.RatCreateMessageQueue(5))
    started = time.monotonic()
    assert [ratos.RatPostMessage(q, msg(n)) for n in range(6)] == [RAT_IPC_OK] * 5 + [RAT_IPC_ERR_NO_RESOURCES]
    assert "capacity" in ratos.detail()
    assert time.monotonic() - started < 1.0
    assert got(ratos.RatPeekMessage(q)).header.message == 0
    assert ratos.RatPostMessage(q, msg(6)) == RAT_IPC_ERR_NO_RESOURCES
    assert got(ratos.RatGetMessage(q, -1)).header.message == 0
    assert [ratos.RatPostMessage(q, msg(n)) for n in (6, 7)] == [RAT_IPC_OK, RAT_IPC_ERR_NO_RESOURCES]
    assert ids(q) == [1, 2, 3, 4, 6]
    ratos.RatCloseMessageQueue(q)


@pytest.mark.row("F4", "F5")
def test_header_and_payload_arrive_as_they_were_posted(q: RatHandle, rats: list[Any]) -> None:
    extremes = [
        (0, 0, -(2**63), b""),
        (2**32 - 1, 2**64 - 1, 2**63 - 1, b"payload\0"),
        (7, 2**63, -1, bytes(100_000)),
    ]
    for rat in rats:
        assert rat.post("q", *extremes) == [0] * 3
    found = [got(ratos.RatGetMessage(q, -1)) for _ in range(6)]
    fields = [(m.header.message, m.header.wparam, m.header.lparam, m.payload) for m in found]
    assert fields == extremes * 2
    assert [m.header.size for m in found] == [0, 8, 100_000] * 2
    senders = [m.header.sender for m in found]
    assert senders == [got(ratos.RatOpenProcess(rat)) for rat in rats for _ in range(3)]
    assert senders[0] != senders[3]
    assert all(isinstance(sender, RatHandle) for sender in senders)
    forged = msg(1)
    forged.header.sender = senders[0]
    assert ratos.RatPostMessage(q, forged) == RAT_IPC_OK
    assert got(ratos.RatGetMessage(q, -1)).header.sender == got(ratos.RatOpenProcess(shmipc.self()))

    assert ratos.RatPostMessage(q, msg(1, payload=b"ignored", size=0)) == RAT_IPC_OK
    m = got(ratos.RatGetMessage(q, -1))
    assert (m.header.size, m.payload) == (0, b"")
    assert ratos.RatPostMessage(q, msg(1, payload=b"first of it", size=5)) == RAT_IPC_OK
    assert got(ratos.RatGetMessage(q, -1)).payload == b"first"
    for wrong in (msg(-1), msg(2**32), msg(1, 2**64), msg(1, -1), msg(1, 0, 2**63), msg(1, payload=b"x", size=2)):
        assert ratos.RatPostMessage(q, wrong) == RAT_IPC_ERR_INVALID_ARG
    for wrong in (None, b"", msg(1, size=3, payload=None), msg("1"), msg(True)):  # type: ignore[arg-type]
        assert ratos.RatPostMessage(q, wrong) == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
    assert ids(q) == []


@pytest.mark.row("F6", "F7")
def test_send_waits_for_the_reply(q: RatHandle, rats: list[Any]) -> None:
    server, client = rats
    assert server.keep("q", "RatOpenNamedMessageQueue", "q") == RAT_IPC_OK
    serving = server.serve.submit("q", 2)
    assert client.send("q", (10, 99, 0, b"abc"), LIMIT_MS)[::2] == (0, (11, 99, b"cba"))
    assert client.send("q", (10, 99, 0, b"abc"), -1, False)[::2] == (0, None), "it only waits"
    serving.result(LIMIT)

    status, took, _ = client.send("q", (10,), 200)
    assert (status, took >= 0.2) == (RAT_IPC_ERR_TIMEOUT, True)
    assert ids(q) == [], "it was withdrawn"
    assert client.send("q", (10,), 0)[::2] == (RAT_IPC_ERR_TIMEOUT, None)

    sent = client.send.submit("q", (1, 2, 3, b"once"), LIMIT_MS)
    m = got(ratos.RatGetMessage(q, -1))
    outcomes: list[Any] = []
    other = threading.Thread(target=lambda: outcomes.append(ratos.RatReplyMessage(m, msg(5))))
    other.start()
    other.join()
    assert outcomes == [RAT_IPC_ERR_ACCESS_DENIED], "another thread"
    assert ratos.RatReplyMessage(m, "wrong") == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
    assert ratos.RatReplyMessage(m, msg(5, 6, 0, b"reply")) == RAT_IPC_OK
    assert ratos.RatReplyMessage(m, msg(5)) == RAT_IPC_ERR_INVALID_ARG, "a second time"
    assert sent.result(LIMIT)[::2] == (0, (5, 6, b"reply"))
    assert client.post("q", (1,)) == [0]
    posted = got(ratos.RatGetMessage(q, -1))
    for wrong in (posted, msg(1), None):
        assert ratos.RatReplyMessage(wrong, msg(5)) == RAT_IPC_ERR_INVALID_ARG

    late = client.send.submit("q", (1,), 400)
    m = got(ratos.RatGetMessage(q, LIMIT_MS))
    assert late.result(LIMIT)[0] == RAT_IPC_ERR_TIMEOUT
    assert ratos.RatGetMessage(q, 50)[0] == RAT_IPC_ERR_TIMEOUT, "that somebody gave up is no affair of the loop"
    assert ratos.RatReplyMessage(m, msg(5)) == RAT_IPC_ERR_CANCELLED
    server.do("RatCloseMessageQueue", "@q")


@pytest.mark.row("F6")
def test_send_ends_when_the_queue_is_closed(q: RatHandle, rats: list[Any], eventually: Any) -> None:
    server, client = rats
    assert server.keep("served", "RatCreateNamedMessageQueue", "served", 4) == RAT_IPC_OK
    taken = client.send.submit("served", (1,), -1)
    assert server.get("served")[0] == 1
    server.do("RatCloseMessageQueue", "@served")
    assert taken.result(LIMIT)[0] == RAT_IPC_ERR_NOT_CONNECTED, "by who has the request"
    assert server.reply() == RAT_IPC_ERR_INVALID_ARG

    assert server.keep("served", "RatCreateNamedMessageQueue", "served", 4) == RAT_IPC_OK
    waits = client.send.submit("served", (1,), -1)
    opened = got(ratos.RatOpenNamedMessageQueue("served"))
    eventually(lambda: ratos.RatPeekMessage(opened)[0] == RAT_IPC_OK)
    ratos.RatCloseMessageQueue(opened)
    server.do("RatCloseMessageQueue", "@served")
    assert waits.result(LIMIT)[0] == RAT_IPC_ERR_NOT_CONNECTED, "by the last who receives"

    results: list[Any] = []
    here = threading.Thread(target=lambda: results.append(ratos.RatSendMessage(q, msg(1))))
    here.start()
    eventually(lambda: ratos.RatPeekMessage(q)[0] == RAT_IPC_OK)
    assert ratos.RatCloseMessageQueue(q) == RAT_IPC_OK
    here.join(LIMIT)
    assert results == [(RAT_IPC_ERR_NOT_CONNECTED, None)], "by another thread"
    assert ratos.RatSendMessage(q, msg(1)) == (RAT_IPC_ERR_INVALID_ARG, None)


@pytest.mark.row("F6")
@pytest.mark.parametrize("taken", [True, False])
def test_send_ends_when_the_receiver_is_killed(rats: list[Any], system: shmipc.System, taken: bool) -> None:
    receiver: Any = system.spawn(Rat)
    assert receiver.keep("q", "RatCreateNamedMessageQueue", "mortal", 4) == RAT_IPC_OK
    client: Any = system.spawn(Rat)
    if taken:
        receiver.take_and_hold.cast("q", shmipc.self())
    sent = client.send.submit("mortal", (1,), -1)
    if taken:
        assert shmipc.receive(tag=1, timeout=LIMIT).body == "taken"
    else:
        mine = shmipc.Mailbox.open("mortal")
        assert mine.peek(timeout=LIMIT).is_call is False
        mine.close()
    os.kill(shmipc.process(receiver).pid, signal.SIGKILL)
    assert sent.result(LIMIT)[0] == RAT_IPC_ERR_NOT_CONNECTED


@pytest.mark.row("F8")
def test_get_waits_and_peek_does_not(q: RatHandle, rat: Any) -> None:
    started = time.monotonic()
    assert ratos.RatGetMessage(q, 50) == (RAT_IPC_ERR_TIMEOUT, None)
    assert time.monotonic() - started >= 0.05
    started = time.monotonic()
    assert ratos.RatPeekMessage(q) == (RAT_IPC_ERR_TIMEOUT, None)
    assert ratos.RatPeekMessage(q, True) == (RAT_IPC_ERR_TIMEOUT, None)
    assert time.monotonic() - started < 1.0
    found: list[Any] = []
    waits = threading.Thread(target=lambda: found.append(got(ratos.RatGetMessage(q, -1))))
    waits.start()
    waits.join(0.1)
    assert waits.is_alive()
    rat.post("q", (1, 2, 3, b"x"), (2, 0, 0, b"second"), (3,))
    waits.join(LIMIT)
    assert found[0].payload == b"x"
    first, second = got(ratos.RatPeekMessage(q)), got(ratos.RatPeekMessage(q))
    assert first == second == got(ratos.RatGetMessage(q, -1))
    assert first.payload == b"second"
    assert got(ratos.RatPeekMessage(q, True)).header.message == 3
    assert ids(q) == []
    for wrong in ((q, "soon"), (q, 0, -1), (q, 0, None, 5, 4), (q, 0, None, -1), (q, 0, None, 0, 2**32), (None, 0)):
        assert ratos.RatGetMessage(*wrong)[0] == RAT_IPC_ERR_INVALID_ARG
    assert ratos.RatPeekMessage(q, "maybe")[0] == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]


@pytest.mark.row("F9")
def test_message_larger_than_the_buffer_is_kept(q: RatHandle, rat: Any) -> None:
    shm = got(ratos.RatCreateSharedMemory(None, 100))
    for handle in (0, shm):
        assert ratos.RatPostMessage(q, msg(1, handle, 0, b"y" * 1000)) == RAT_IPC_OK
        for _ in range(2):
            status, m = ratos.RatGetMessage(q, LIMIT_MS, 10)
            assert status == RAT_IPC_ERR_BUFFER_TOO_SMALL
            assert m is not None
            assert (m.header.message, m.header.size, m.payload) == (1, 1000, b"")
            assert "1000 bytes" in ratos.detail()
        m = got(ratos.RatGetMessage(q, LIMIT_MS, 1000))
        assert (m.header.size, m.payload) == (1000, b"y" * 1000)
    assert ratos.RatCloseSharedMemory(m.header.wparam) == RAT_IPC_OK
    ratos.RatCloseSharedMemory(shm)
    assert ratos.RatGetMessage(q, 50, 10) == (RAT_IPC_ERR_TIMEOUT, None)


@pytest.mark.row("F10", "F11")
def test_dispatch_and_the_quit(q: RatHandle, rats: list[Any], caplog: Any) -> None:
    seen: list[Any] = []

    def fail(m: RatMessage) -> None:
        seen.append("fails")
        raise ZeroDivisionError("on purpose")

    other = got(ratos.RatCreateMessageQueue(4))
    assert ratos.RatRegisterHandler(q, 1, lambda m: seen.append((1, m.payload))) == RAT_IPC_OK
    assert ratos.RatRegisterHandler(q, 2, fail) == RAT_IPC_OK
    assert ratos.RatRegisterHandler(q, None, lambda m: seen.append(("default", m.header.message))) == RAT_IPC_OK
    assert ratos.RatRegisterHandler(other, 1, lambda m: seen.append("of the other queue")) == RAT_IPC_OK
    rats[0].post("q", (1, 0, 0, b"one"), (2,), (3,), (2, 0, 0, b"", 500))
    sent = rats[1].send.submit("q", (2,), LIMIT_MS)
    while not got(ratos.RatPeekMessage(q)) or shmipc.Mailbox.open("q").count() < 5:
        time.sleep(0)
    assert ratos.RatPostQuitMessage(q, 42) == RAT_IPC_OK
    rats[0].post("q", (1, 0, 0, b"behind"))
    assert ratos.RatPostMessage(other, msg(1)) == RAT_IPC_OK
    statuses = []
    while (answer := ratos.RatGetMessage(q, -1))[0] == RAT_IPC_OK:
        assert answer[1] is not None
        statuses.append(ratos.RatDispatchMessage(answer[1]))
        assert ratos.RatWaitForObject(q, 0) == RAT_IPC_OK, "the quit at least is there"
    status, m = answer
    assert m is not None
    assert (status, m.header.message, m.header.wparam) == (RAT_IPC_ERR_CANCELLED, ratos.RAT_MSG_QUIT, 42)
    assert sorted(statuses) == [RAT_IPC_OK] * 2 + [RAT_IPC_ERR_UNKNOWN] * 3
    assert seen == [(1, b"one"), "fails", ("default", 3), "fails", "fails"]
    assert "on purpose" in caplog.text
    assert sent.result(LIMIT)[0] == RAT_IPC_ERR_UNKNOWN, "who has sent it is told"
    assert ratos.RatDispatchMessage(got(ratos.RatGetMessage(q, 0))) == RAT_IPC_OK
    assert seen[-1] == (1, b"behind")
    assert ratos.RatDispatchMessage(got(ratos.RatGetMessage(other, 0))) == RAT_IPC_OK
    assert seen[-1] == "of the other queue"
    assert ratos.RatRegisterHandler(q, None, None) == RAT_IPC_OK
    assert ratos.RatPostMessage(q, msg(9)) == RAT_IPC_OK
    assert ratos.RatDispatchMessage(got(ratos.RatGetMessage(q, 0))) == RAT_IPC_ERR_NOT_FOUND
    for wrong in (msg(1), None):
        assert ratos.RatDispatchMessage(wrong) == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
    assert ratos.RatRegisterHandler(q, 1, 5) == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
    ratos.RatCloseMessageQueue(other)


@pytest.mark.row("F16")
def test_priorities_and_ranges_of_ids(q: RatHandle, rat: Any) -> None:
    assert rat.post("q", *[(n, 0, 0, b"", [3, 0, 7][n % 3]) for n in range(9)]) == [0] * 9
    assert ids(q, min_id=4, max_id=6) == [4, 6, 5]
    assert ids(q) == [1, 7, 0, 3, 2, 8]
    for wrong in (-1, 1024, "1", True):
        status = ratos.RatPostMessage(q, msg(1), wrong)  # type: ignore[arg-type]
        assert status == RAT_IPC_ERR_INVALID_ARG
    small = got(ratos.RatCreateMessageQueue(1))
    ratos.RatPostMessage(small, msg(1))
    assert ratos.RatGetMessage(small, LIMIT_MS, None, 2, 3) == (RAT_IPC_ERR_NO_RESOURCES, None), "it would never end"
    ratos.RatCloseMessageQueue(small)


# --- lifetime and handles in messages --------------------------------------------------------------------------


def test_request_that_was_got_and_is_dropped_is_refused_and_holds_nothing(q: RatHandle, rat: Any) -> None:
    sent = rat.send.submit("q", (1, 0, 0, b"x" * 1000), LIMIT_MS)
    m = got(ratos.RatGetMessage(q, LIMIT_MS))
    (request,) = table.find(q).object.requests
    assert request.message.body is None, "what has been opened is the receiver's"
    assert m.payload == b"x" * 1000
    del request
    assert not sent.done()
    del m
    assert sent.result(LIMIT)[0] == RAT_IPC_ERR_NOT_CONNECTED
    assert not table.find(q).object.requests


@pytest.mark.row("F12")
def test_named_objects_live_until_the_last_close_or_the_unlink(system: shmipc.System, rats: list[Any]) -> None:
    first, second, third = (system.spawn(Rat) for _ in range(3))
    assert first.keep("m", "RatCreateSharedMemory", "living", 5000) == RAT_IPC_OK
    assert first.keep("q", "RatCreateNamedMessageQueue", "queue", 4) == RAT_IPC_OK
    assert first.map("m") == 5000
    first.fill(b"here")
    for one in (second, third):
        assert one.keep("m", "RatOpenSharedMemory", "living") == RAT_IPC_OK
        assert one.keep("q", "RatOpenNamedMessageQueue", "queue") == RAT_IPC_OK
    assert second.post("queue", (5,)) == [0]
    os.kill(shmipc.process(first).pid, signal.SIGKILL)
    assert shmipc.process(first).join(LIMIT)
    assert second.do("RatCloseSharedMemory", "@m") == second.do("RatCloseMessageQueue", "@q") == RAT_IPC_OK
    assert second.keep("m", "RatOpenSharedMemory", "/living") == RAT_IPC_OK, "the third has it open"
    assert second.map("m", True) == 5000
    assert second.read(4) == b"here"
    assert third.get("q")[0] == 5
    assert third.do("RatCloseSharedMemory", "@m") == third.do("RatCloseMessageQueue", "@q") == RAT_IPC_OK
    assert third.keep("q", "RatOpenNamedMessageQueue", "queue") == RAT_IPC_ERR_NOT_FOUND, "nobody had it open"
    assert second.do("RatCloseSharedMemory", "@m") == RAT_IPC_OK
    assert third.keep("m", "RatOpenSharedMemory", "living") == RAT_IPC_OK, "it is mapped"
    assert third.do("RatCloseSharedMemory", "@m") == second.unmap() == RAT_IPC_OK
    assert third.keep("m", "RatOpenSharedMemory", "living") == RAT_IPC_ERR_NOT_FOUND

    assert second.keep("m", "RatCreateSharedMemory", "lasting", 5000, True) == RAT_IPC_OK
    assert second.keep("q", "RatCreateNamedMessageQueue", "lasting_queue", 4, True) == RAT_IPC_OK
    assert second.post("lasting_queue", (6,)) == [0]
    os.kill(shmipc.process(second).pid, signal.SIGKILL)
    assert shmipc.process(second).join(LIMIT)
    assert third.keep("m", "RatOpenSharedMemory", "lasting") == RAT_IPC_OK, "persistent"
    assert third.keep("q", "RatOpenNamedMessageQueue", "lasting_queue") == RAT_IPC_OK
    assert third.map("m") == 5000
    assert ratos.RatUnlinkSharedMemory("lasting") == ratos.RatUnlinkMessageQueue("lasting_queue") == RAT_IPC_OK
    assert ratos.RatUnlinkSharedMemory("lasting") == RAT_IPC_ERR_NOT_FOUND
    assert ratos.RatOpenNamedMessageQueue("lasting_queue")[0] == RAT_IPC_ERR_NOT_FOUND, "at once"
    third.fill(b"works")
    assert third.read(5) == b"works"
    assert third.get("q")[0] == 6
    assert ratos.RatCreateSharedMemory("lasting", 10)[0] == RAT_IPC_OK, "the name is free"


@pytest.mark.row("F15", "H5")
def test_shared_memory_in_a_message_outlives_the_sender_s_handle(
    home: shmipc.System, rats: list[Any], q: RatHandle
) -> None:
    size = 1 << 20
    before = usage(home, *rats)
    checksum = rats[0].post_filled("/rat_large", "q", size)
    assert ratos.RatCloseSharedMemory(got(ratos.RatOpenSharedMemory("rat_large"))) == RAT_IPC_OK
    m = got(ratos.RatGetMessage(q, -1))
    assert m.header.message == 100
    assert isinstance(m.header.wparam, RatHandle)
    status, addr, mapped = ratos.RatMapSharedMemory(m.header.wparam)
    assert (status, mapped) == (RAT_IPC_OK, size)
    assert addr is not None
    assert zlib.crc32(addr) == checksum
    assert ratos.RatUnmapSharedMemory(addr, size) == RAT_IPC_OK
    assert ratos.RatCloseSharedMemory(m.header.wparam) == RAT_IPC_OK
    assert ratos.RatOpenSharedMemory("rat_large")[0] == RAT_IPC_ERR_NOT_FOUND
    del m, addr
    after = usage(home, *rats)
    assert {name: after[name] for name in COUNTS} == {name: before[name] for name in COUNTS}

    assert rats[1].keep("dropped", "RatCreateNamedMessageQueue", "dropped", 4) == RAT_IPC_OK
    rats[0].post_filled(None, "dropped", size)
    assert usage(home, *rats)["blocks"] > before["blocks"]
    assert rats[1].do("RatCloseMessageQueue", "@dropped") == RAT_IPC_OK, "never read"
    after = usage(home, *rats)
    assert {name: after[name] for name in COUNTS if name != "undelivered"} == {
        name: before[name] for name in COUNTS if name != "undelivered"
    }


def test_handles_of_all_kinds_travel_and_keep_what_they_stand_for(q: RatHandle, rats: list[Any]) -> None:
    rat = rats[0]
    assert rat.keep("q", "RatOpenNamedMessageQueue", "q") == RAT_IPC_OK
    made = {
        "event": got(ratos.RatCreateEvent(True, False)),
        "mutex": got(ratos.RatCreateMutex()),
        "semaphore": got(ratos.RatCreateSemaphore(1, 2)),
        "lock": got(ratos.RatCreateRwLock()),
        "memory": got(ratos.RatCreateSharedMemory(None, 10)),
    }
    closers = ratos.RatCloseEvent, ratos.RatCloseMutex, ratos.RatCloseSemaphore, ratos.RatCloseRwLock
    for handle, shut in zip(made.values(), (*closers, ratos.RatCloseSharedMemory), strict=True):
        assert ratos.RatPostMessage(q, msg(1, int(handle), handle)) == RAT_IPC_OK
        assert shut(handle) == RAT_IPC_OK
        assert shut(handle) == RAT_IPC_ERR_INVALID_ARG
        assert ratos.RatPostMessage(q, msg(1, handle)) == RAT_IPC_ERR_INVALID_ARG, "closed"
    for name, handle in made.items():
        _, wparam, lparam, *_ = rat.get("q")
        assert type(wparam) is int
        assert wparam == int(handle), "a number stays a number"
        assert isinstance(lparam, RatHandle)
        assert lparam != handle
        function = {"event": "RatSetEvent", "mutex": "RatLockMutex", "semaphore": "RatAcquireSemaphore"}.get(name)
        function = function or {"lock": "RatLockRead", "memory": "RatMapSharedMemory"}[name]
        assert rat.use_number(function, lparam) == RAT_IPC_OK

    read, write = ratos.RatCreatePipe()[1:]
    assert ratos.RatWritePipe(read, b"x") == (RAT_IPC_ERR_ACCESS_DENIED, 0), "the reading end has one right"
    assert ratos.RatReadPipe(write, 1) == (RAT_IPC_ERR_ACCESS_DENIED, b"", 0)
    assert ratos.RatPostMessage(q, msg(1, write)) == RAT_IPC_OK
    _, wparam, *_ = rat.get("q")
    assert rat.do("RatWritePipe", wparam, b"from there") == (RAT_IPC_OK, 10)
    assert rat.do("RatReadPipe", wparam, 1)[0] == RAT_IPC_ERR_ACCESS_DENIED, "its rights travel"
    assert ratos.RatReadPipe(read, 100) == (RAT_IPC_OK, b"from there", 10)
    ratos.RatClosePipe(read), ratos.RatClosePipe(write)

    assert ratos.RatPostMessage(q, msg(1, q)) == RAT_IPC_OK
    _, wparam, *_ = rat.get("q")
    assert rat.do("RatPostMessage", wparam, msg(8)) == RAT_IPC_OK
    assert ids(q) == [8]
    rat.do("RatCloseMessageQueue", wparam)
    assert ratos.RatPostMessage(q, msg(1, RAT_INVALID_HANDLE)) == RAT_IPC_OK
    assert rat.get("q")[1] == 0
    rat.do("RatCloseMessageQueue", "@q")


@pytest.mark.row("H7")
def test_reference_to_what_is_not_there_is_refused(q: RatHandle, home: shmipc.System) -> None:
    box = shmipc.Mailbox.open("q")
    head = got_head(q, box)
    before = usage(home)["leases"]
    for bogus in (
        (head, b"", ("MEMORY", 7, 9999, 1, None, None), None),
        (head, b"", ("EVENT", 7, box.index, box.life, (), None), None),
        (head, b"", ("SOCKET", 7, 1, 1, None, None), None),
        (head, b"", ("NOTHING", 7, 1, 1, None, None), None),
        (head, b"", "text", None),
        (head, b"", ("QUEUE", 7, box.index, box.life, None, None), ("MEMORY", 7, -1, "x", None, None)),
        (b"", b"", None, None),
        {"no": "message"},
        b"short",
    ):
        box.post(bogus, tag=5, timeout=0)
        status, m = ratos.RatGetMessage(q, LIMIT_MS)
        assert (status, m) == (RAT_IPC_ERR_INVALID_ARG, None), bogus
    assert usage(home)["leases"] == before, "what was opened of it is closed again"
    assert ids(q) == []
    box.close()


def boom() -> None:
    raise ValueError("on purpose")


class Ill:
    def __reduce__(self) -> Any:
        return boom, ()


@pytest.mark.parametrize("capacity", [None, 100])
def test_message_that_is_none_is_gone_and_the_next_comes(q: RatHandle, capacity: int | None) -> None:
    box = shmipc.Mailbox.open("q")
    box.post("no message", tag=6, timeout=0)
    box.post(Ill(), tag=6, timeout=0)
    called = box.submit_nowait("no message", LIMIT, 6)
    called_ill = box.submit_nowait(Ill(), LIMIT, 6)
    assert ratos.RatPostMessage(q, msg(7, payload=b"ok")) == RAT_IPC_OK
    for _ in range(3):
        assert ratos.RatGetMessage(q, LIMIT_MS, capacity) == (RAT_IPC_ERR_INVALID_ARG, None)
    assert got(ratos.RatGetMessage(q, LIMIT_MS, capacity)).payload == b"ok"
    assert "no message of RatOS" in str(called.exception(LIMIT))
    assert "on purpose" in str(called_ill.exception(LIMIT))
    assert box.count() == 0
    box.close()


@pytest.mark.parametrize("size", [500, 5])
def test_quit_that_another_has_taken_meanwhile_ends_no_get(q: RatHandle, size: int) -> None:
    thief = got(ratos.RatOpenNamedMessageQueue("q"))
    assert ratos.RatPostQuitMessage(q, 3) == RAT_IPC_OK
    loop = table.find(q).object.loop
    look = loop._next

    def robbed(*how: Any, **more: Any) -> Any:
        seen = look(*how, **more)
        loop._next = look
        assert ratos.RatGetMessage(thief, 0)[0] == RAT_IPC_ERR_CANCELLED
        if size > 10:
            ratos.RatPostMessage(q, msg(9, payload=b"z" * size))
        else:
            later.start()
        return seen

    later = threading.Timer(0.05, lambda: ratos.RatPostMessage(q, msg(9, payload=b"z" * size)))
    loop._next = robbed
    status, m = ratos.RatGetMessage(q, -1, 10)
    assert m is not None
    assert (status, m.header.size) == ((RAT_IPC_ERR_BUFFER_TOO_SMALL if size > 10 else RAT_IPC_OK), size)
    ids(q)
    assert ratos.RatPostMessage(q, msg(1, payload=b"five!"), 5) == RAT_IPC_OK
    assert ratos.RatPostQuitMessage(q, 4) == RAT_IPC_OK
    assert ratos.RatGetMessage(q, -1, 2)[0] == RAT_IPC_ERR_BUFFER_TOO_SMALL, "it is before the quit"
    assert got(ratos.RatGetMessage(q, -1, 5)).payload == b"five!"
    status, m = ratos.RatGetMessage(q, -1, 2)
    assert m is not None
    assert (status, m.header.wparam) == (RAT_IPC_ERR_CANCELLED, 4)
    ratos.RatCloseMessageQueue(thief)


def test_receive_whose_queue_is_closed_is_not_connected(q: RatHandle) -> None:
    cq = got(ratos.RatCreateCompletionQueue(4))
    assert ratos.RatSubmitReceive(cq, q, 9) == RAT_IPC_OK
    assert ratos.RatCloseMessageQueue(q) == RAT_IPC_OK
    done = got(ratos.RatGetCompletion(cq, LIMIT_MS))
    assert (done.tag, done.status) == (9, RAT_IPC_ERR_NOT_CONNECTED)
    ratos.RatCloseCompletionQueue(cq)


def test_size_counts_bytes_whatever_the_payload_s_elements_are(q: RatHandle) -> None:
    payload = np.arange(4, dtype=np.int32).data
    for size in (4, 16):
        assert ratos.RatPostMessage(q, RatMessage(ratos.RatMessageHeader(1, size=size), payload)) == RAT_IPC_OK
        assert got(ratos.RatGetMessage(q, 0)).payload == payload.tobytes()[:size]


def got_head(q: RatHandle, box: shmipc.Mailbox) -> bytes:
    assert ratos.RatPostMessage(q, msg(1)) == RAT_IPC_OK
    return bytes(box.receive())


# --- shared memory ---------------------------------------------------------------------------------------------


@pytest.mark.row("H1", "H3")
def test_shared_memory_is_made_opened_mapped_and_unlinked(home: shmipc.System, rat: Any) -> None:
    assert ratos.RatOpenSharedMemory("memory") == (RAT_IPC_ERR_NOT_FOUND, RAT_INVALID_HANDLE)
    dirt = shmipc.empty((10_000,), np.uint8)
    dirt[:] = 255
    del dirt
    shm = got(ratos.RatCreateSharedMemory("memory", 10_000))
    assert ratos.RatCreateSharedMemory("memory", 10_000)[0] == RAT_IPC_ERR_ALREADY_EXISTS
    assert ratos.RatCreateNamedMessageQueue("memory", 4)[0] == RAT_IPC_ERR_ALREADY_EXISTS
    assert ratos.RatOpenNamedMessageQueue("memory")[0] == RAT_IPC_ERR_NOT_FOUND
    assert ratos.RatOpenEvent("memory")[0] == RAT_IPC_ERR_NOT_FOUND
    status, addr, size = ratos.RatMapSharedMemory(shm)
    assert (status, size) == (RAT_IPC_OK, 10_000)
    assert addr is not None
    assert bytes(addr) == bytes(10_000)
    assert rat.keep("m", "RatOpenSharedMemory", "/memory") == RAT_IPC_OK
    assert rat.map("m") == 10_000
    rat.fill(b"from there")
    assert bytes(addr[:10]) == b"from there"

    _, only, _ = ratos.RatMapSharedMemory(shm, True)
    assert only is not None
    with pytest.raises(TypeError):
        only[0] = 1
    rat.fill(b"changed")
    assert bytes(only[:7]) == b"changed", "others' changes are seen"
    assert ratos.RatUnmapSharedMemory(only, 10_000) == RAT_IPC_OK

    assert ratos.RatUnlinkSharedMemory("memory") == RAT_IPC_OK
    assert ratos.RatOpenSharedMemory("memory")[0] == RAT_IPC_ERR_NOT_FOUND
    addr[:5] = b"still"
    assert rat.read(5) == b"still"
    assert ratos.RatCloseSharedMemory(shm) == RAT_IPC_OK
    addr[:5] = b"works"
    assert rat.read(5) == b"works"
    assert ratos.RatUnmapSharedMemory(addr, 5) == RAT_IPC_ERR_INVALID_ARG, "another size"
    assert ratos.RatUnmapSharedMemory(addr, size) == RAT_IPC_OK
    assert ratos.RatUnmapSharedMemory(addr, size) == RAT_IPC_ERR_INVALID_ARG
    with pytest.raises(ValueError, match="released"):
        addr[0]
    assert ratos.RatMapSharedMemory(shm) == (RAT_IPC_ERR_INVALID_ARG, None, 0)
    assert rat.unmap() == rat.do("RatCloseSharedMemory", "@m") == RAT_IPC_OK
    for name, nbytes in (("memory", 0), ("memory", -1), ("memory", None), ("a/b", 1), ("", 1), (5, 1), ("x" * 65, 1)):
        assert ratos.RatCreateSharedMemory(name, nbytes)[0] == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
    assert ratos.RatCreateSharedMemory("memory", 1 << 39)[0] == RAT_IPC_ERR_NO_RESOURCES
    array = np.frombuffer(got_map(got(ratos.RatCreateSharedMemory(None, 8))), np.uint8)
    array[:] = 7
    assert array.sum() == 56


def test_name_of_memory_with_an_access_list_is_taken(home: shmipc.System) -> None:
    listed = got(ratos.RatCreateSharedMemory("listed", 10, access=[]))
    assert ratos.RatCreateSharedMemory("listed", 10)[0] == RAT_IPC_ERR_ALREADY_EXISTS
    assert ratos.RatCreateSharedMemory("/listed", 10, access=[])[0] == RAT_IPC_ERR_ALREADY_EXISTS
    assert ratos.RatCloseSharedMemory(listed) == RAT_IPC_OK
    plain = got(ratos.RatCreateSharedMemory("listed", 10))
    assert ratos.RatCreateSharedMemory("listed", 10, access=[])[0] == RAT_IPC_ERR_ALREADY_EXISTS, "the system's too"
    assert "taken in the system" in ratos.detail()
    assert ratos.RatCloseSharedMemory(plain) == RAT_IPC_OK
    assert ratos.RatCloseSharedMemory(got(ratos.RatCreateSharedMemory("listed", 10, access=[]))) == RAT_IPC_OK


def test_name_that_another_user_holds_is_free(home: shmipc.System) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root takes another uid")
    squats, tells = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(12345)
            os.setuid(12345)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as squatter:
                squatter.bind(named_address(0, "frames"))
                squatter.listen(1)
                os.write(tells, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.close(tells)
    try:
        assert os.read(squats, 1) == b"x"
        for access in (None, []):
            status, shm = ratos.RatCreateSharedMemory("frames", 100, access=access)
            assert status == (RAT_IPC_OK if access is None else RAT_IPC_ERR_ALREADY_EXISTS), ratos.detail()
            ratos.RatCloseSharedMemory(shm)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(squats)


def got_map(shm: RatHandle) -> memoryview:
    status, addr, _ = ratos.RatMapSharedMemory(shm)
    assert status == RAT_IPC_OK
    assert addr is not None
    return addr


@pytest.mark.row("H2")
def test_what_is_written_before_an_event_is_seen_after_it(home: shmipc.System, rat: Any, rounds: Any) -> None:
    count = rounds(10_000, 500)
    shm = got(ratos.RatCreateSharedMemory("seen", 4096))
    events = [got(ratos.RatCreateEvent(False, False, name)) for name in ("written", "compared")]
    addr = got_map(shm)
    writing = rat.write_and_set.submit(count)
    for n in range(count):
        assert ratos.RatWaitForObject(events[0], LIMIT_MS) == RAT_IPC_OK
        assert bytes(addr) == bytes([n % 251]) * 4096
        assert ratos.RatSetEvent(events[1]) == RAT_IPC_OK
    writing.result(LIMIT)
    ratos.RatUnmapSharedMemory(addr, 4096)
    ratos.RatCloseSharedMemory(shm)
    assert [ratos.RatCloseEvent(event) for event in events] == [RAT_IPC_OK] * 2


# --- waits and sync objects ------------------------------------------------------------------------------------


@pytest.mark.row("E4", "E7", "E8")
def test_waits_for_handles(q: RatHandle, rat: Any) -> None:
    unset, set_, auto = (got(ratos.RatCreateEvent(*how)) for how in ((True, False), (True, True), (False, True)))
    assert ratos.RatWaitForObject(set_, 0) == RAT_IPC_OK
    started = time.monotonic()
    assert ratos.RatWaitForObject(unset, 50) == RAT_IPC_ERR_TIMEOUT
    assert time.monotonic() - started >= 0.05
    closed = got(ratos.RatCreateEvent(True, True))
    ratos.RatCloseEvent(closed)
    for wrong in (closed, 12345, RAT_INVALID_HANDLE, None, "handle", 1.0):
        assert ratos.RatWaitForObject(wrong, 0) == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
        assert ratos.RatWaitForMultipleObjects([auto, wrong], False, 0)[0] == RAT_IPC_ERR_INVALID_ARG  # type: ignore[list-item]
    many = [got(ratos.RatCreateEvent(True, True)) for _ in range(64)]
    for handles in ([], [auto, auto], [auto, *many], [auto, got(ratos.RatCreateRwLock())]):
        for every in (True, False):
            assert ratos.RatWaitForMultipleObjects(handles, every, 0) == (RAT_IPC_ERR_INVALID_ARG, -1)
    assert ratos.RatWaitForMultipleObjects(many, True, 0) == (RAT_IPC_OK, 0)
    for one in many:
        ratos.RatCloseEvent(one)
    assert ratos.RatWaitForMultipleObjects([unset, auto], True, 50) == (RAT_IPC_ERR_TIMEOUT, -1)
    assert ratos.RatWaitForMultipleObjects([unset, auto, set_], False, 0) == (RAT_IPC_OK, 1), "nothing was taken before"
    assert ratos.RatWaitForMultipleObjects([unset, auto, set_], False, 0) == (RAT_IPC_OK, 2)
    assert ratos.RatResetEvent(set_) == RAT_IPC_OK
    assert ratos.RatWaitForObject(set_, 0) == RAT_IPC_ERR_TIMEOUT

    assert rat.post("q", (1,), (2,)) == [0, 0]
    assert [ratos.RatWaitForObject(q, LIMIT_MS) for _ in range(2)] == [RAT_IPC_OK] * 2, "it takes nothing"
    assert ids(q) == [1, 2]
    assert ratos.RatWaitForObject(q, 100) == RAT_IPC_ERR_TIMEOUT
    for one in (unset, set_, auto):
        assert ratos.RatCloseEvent(one) == RAT_IPC_OK


def test_locks_and_semaphores(rats: list[Any], system: shmipc.System) -> None:
    mutex, semaphore = got(ratos.RatCreateMutex("mutex")), got(ratos.RatCreateSemaphore(1, 2, "semaphore"))
    lock = got(ratos.RatCreateRwLock("lock"))
    other: Any = system.spawn(Rat)
    for under, function in (("m", "RatOpenMutex"), ("s", "RatOpenSemaphore"), ("l", "RatOpenRwLock")):
        assert other.keep(under, function, "nothing") == RAT_IPC_ERR_NOT_FOUND
    assert other.keep("m", "RatOpenMutex", "mutex") == RAT_IPC_OK
    assert other.keep("s", "RatOpenSemaphore", "semaphore") == RAT_IPC_OK
    assert other.keep("l", "RatOpenRwLock", "lock") == RAT_IPC_OK
    assert ratos.RatCreateMutex("lock")[0] == RAT_IPC_ERR_ALREADY_EXISTS
    assert ratos.RatOpenMutex("lock")[0] == RAT_IPC_ERR_INVALID_ARG
    assert [ratos.RatLockMutex(mutex), ratos.RatLockMutex(mutex, 0)] == [RAT_IPC_OK] * 2
    assert other.do("RatLockMutex", "@m", 50) == RAT_IPC_ERR_TIMEOUT
    assert other.do("RatUnlockMutex", "@m") == RAT_IPC_ERR_ACCESS_DENIED
    assert [ratos.RatUnlockMutex(mutex) for _ in range(3)] == [RAT_IPC_OK, RAT_IPC_OK, RAT_IPC_ERR_ACCESS_DENIED]
    assert other.do("RatAcquireSemaphore", "@s") == RAT_IPC_OK
    assert ratos.RatAcquireSemaphore(semaphore, 0) == RAT_IPC_ERR_TIMEOUT
    assert ratos.RatReleaseSemaphore(semaphore, 3)[0] == RAT_IPC_ERR_NO_RESOURCES
    assert ratos.RatReleaseSemaphore(semaphore, 2) == (RAT_IPC_OK, 0)
    assert other.do("RatLockRead", "@l") == ratos.RatLockRead(lock) == RAT_IPC_OK
    assert ratos.RatLockWrite(lock, 0) == RAT_IPC_ERR_TIMEOUT
    assert [ratos.RatUnlockRead(lock), ratos.RatUnlockRead(lock)] == [RAT_IPC_OK, RAT_IPC_ERR_ACCESS_DENIED]
    assert other.do("RatLockMutex", "@m") == RAT_IPC_OK
    process = got(ratos.RatOpenProcess(other))
    assert ratos.RatWaitForObject(process, 0) == RAT_IPC_ERR_TIMEOUT
    os.kill(shmipc.process(other).pid, signal.SIGKILL)
    assert [ratos.RatWaitForObject(process, LIMIT_MS), ratos.RatWaitForObject(process, 0)] == [RAT_IPC_OK] * 2
    assert ratos.RatWaitForMultipleObjects([mutex, process], True, LIMIT_MS) == (RAT_IPC_ERR_ABANDONED, 0)
    assert ratos.RatUnlockMutex(mutex) == RAT_IPC_OK
    assert ratos.RatLockMutex(mutex) == RAT_IPC_OK
    assert ratos.RatLockWrite(lock, LIMIT_MS) == RAT_IPC_OK, "the dead reader has left"
    assert ratos.RatUnlockWrite(lock) == ratos.RatCloseRwLock(lock) == RAT_IPC_OK
    assert ratos.RatCloseMutex(mutex) == ratos.RatCloseSemaphore(semaphore) == RAT_IPC_OK


def test_handles_of_a_system_go_with_it() -> None:
    with shmipc.System():
        event = got(ratos.RatCreateEvent(True, True))
        addr = got_map(got(ratos.RatCreateSharedMemory(None, 100)))
        addr[:3] = b"abc"
        assert ratos.RatWaitForObject(event, 0) == RAT_IPC_OK
    assert ratos.RatWaitForObject(event, 0) == RAT_IPC_ERR_INVALID_ARG
    assert bytes(addr[:3]) == b"abc", "what was mapped stays"


# --- pipes and sockets -----------------------------------------------------------------------------------------


@pytest.mark.row("F17")
def test_pipe_is_a_stream_that_ends_with_its_last_writer(q: RatHandle, system: shmipc.System) -> None:
    writer: Any = system.spawn(Rat)
    there = got(ratos.RatCreateNamedMessageQueue("there", 4))
    assert writer.keep("q", "RatOpenNamedMessageQueue", "there") == RAT_IPC_OK
    _, read, write = ratos.RatCreatePipe()
    assert ratos.RatPostMessage(there, msg(1, write)) == RAT_IPC_OK
    _, end, *_ = writer.get("q")
    data = os.urandom(1 << 20)
    sent = writer.do.submit("RatWritePipe", end, data)
    found = b""
    while len(found) < len(data):
        status, part, count = ratos.RatReadPipe(read, 10_000)
        assert (status, count) == (RAT_IPC_OK, len(part))
        found += part
    assert found == data
    assert sent.result(LIMIT) == (RAT_IPC_OK, len(data))

    assert ratos.RatSetHandleFlags(read, ratos.RAT_HANDLE_NONBLOCKING) == RAT_IPC_OK
    assert ratos.RatReadPipe(read, 10) == (RAT_IPC_ERR_TIMEOUT, b"", 0)
    assert ratos.RatSetHandleFlags(write, ratos.RAT_HANDLE_NONBLOCKING) == RAT_IPC_OK
    status, count = ratos.RatWritePipe(write, data)
    assert status == RAT_IPC_OK
    assert 0 < count < len(data), "what there was room for"
    assert ratos.RatWritePipe(write, b"more") == (RAT_IPC_ERR_TIMEOUT, 0)
    assert ratos.RatSetHandleFlags(read, 0) == RAT_IPC_OK
    assert ratos.RatClosePipe(write) == RAT_IPC_OK
    while count:
        count -= ratos.RatReadPipe(read, 1 << 20)[2]
    os.kill(shmipc.process(writer).pid, signal.SIGKILL)
    assert ratos.RatReadPipe(read, 10) == (RAT_IPC_OK, b"", 0), "the last writer was killed"
    assert ratos.RatClosePipe(read) == RAT_IPC_OK

    _, read, write = ratos.RatCreatePipe(ratos.RAT_HANDLE_NONBLOCKING)
    assert ratos.RatReadPipe(read, 10) == (RAT_IPC_ERR_TIMEOUT, b"", 0)
    assert ratos.RatClosePipe(read) == RAT_IPC_OK
    assert ratos.RatWritePipe(write, b"x") == (RAT_IPC_ERR_NOT_CONNECTED, 0)
    for wrong in (2, -1, "x"):
        assert ratos.RatCreatePipe(wrong)[0] == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
        assert ratos.RatSetHandleFlags(write, wrong) == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
    assert ratos.RatClosePipe(write) == RAT_IPC_OK


@pytest.mark.row("F18")
@pytest.mark.parametrize("type", [SOCK_STREAM, SOCK_DGRAM], ids=["stream", "dgram"])
@pytest.mark.parametrize("domain", [AF_UNIX, AF_INET], ids=["unix", "inet"])
def test_socket_echoes_across_processes(home: shmipc.System, rat: Any, tmp_path: Path, domain: int, type: int) -> None:
    def address(n: int) -> Any:
        return str(tmp_path / str(n)) if domain == AF_UNIX else ("127.0.0.1", 0)

    server = got(ratos.RatCreateSocket(domain, type))
    assert ratos.RatBindSocket(server, address(0)) == RAT_IPC_OK
    where = got(ratos.RatSocketAddress(server))
    assert rat.keep("s", "RatCreateSocket", domain, type) == RAT_IPC_OK
    data = b"payload" * 1000
    if type == SOCK_STREAM:
        assert ratos.RatListenSocket(server, 5) == RAT_IPC_OK
        assert rat.do("RatConnectSocket", "@s", where) == RAT_IPC_OK
        client = got(ratos.RatAcceptSocket(server))
    else:
        assert rat.do("RatBindSocket", "@s", address(1)) == RAT_IPC_OK
        assert rat.do("RatConnectSocket", "@s", where) == RAT_IPC_OK
        client = server
        assert ratos.RatConnectSocket(client, got(rat.do("RatSocketAddress", "@s"))) == RAT_IPC_OK
    assert rat.do("RatSendSocket", "@s", data) == (RAT_IPC_OK, len(data))
    found = b""
    while len(found) < len(data):
        assert ratos.RatWaitForObject(client, LIMIT_MS) == RAT_IPC_OK
        status, part, count = ratos.RatRecvSocket(client, 1 << 16)
        assert (status, count) == (RAT_IPC_OK, len(part))
        found += part
    assert found == data
    assert ratos.RatSendSocket(client, found) == (RAT_IPC_OK, len(found))
    echoed = b""
    while len(echoed) < len(data):
        echoed += rat.do("RatRecvSocket", "@s", 1 << 16)[1]
    assert echoed == data

    assert ratos.RatSetHandleFlags(client, ratos.RAT_HANDLE_NONBLOCKING) == RAT_IPC_OK
    assert ratos.RatRecvSocket(client, 10) == (RAT_IPC_ERR_TIMEOUT, b"", 0)
    if type == SOCK_STREAM:
        sent = ratos.RatSendSocket(client, bytes(32 << 20))
        assert sent[0] == RAT_IPC_OK
        assert 0 < sent[1] < 32 << 20, "a part was sent, and it says how much"
        assert rat.do("RatCloseSocket", "@s") == RAT_IPC_OK
        assert ratos.RatSetHandleFlags(client, 0) == RAT_IPC_OK
        while (status := ratos.RatSendSocket(client, b"x")[0]) == RAT_IPC_OK:
            pass
        assert status == RAT_IPC_ERR_NOT_CONNECTED
        assert ratos.RatCloseSocket(client) == RAT_IPC_OK
    else:
        assert rat.do("RatCloseSocket", "@s") == RAT_IPC_OK
    assert ratos.RatCloseSocket(server) == RAT_IPC_OK
    assert rat.keep("s", "RatCreateSocket", domain, type) == RAT_IPC_OK
    if type == SOCK_STREAM:
        assert rat.do("RatConnectSocket", "@s", where) == RAT_IPC_ERR_NOT_CONNECTED, "nobody listens there"
    if domain == AF_UNIX:
        assert rat.do("RatConnectSocket", "@s", str(tmp_path / "absent")) == RAT_IPC_ERR_NOT_FOUND
        assert rat.do("RatBindSocket", "@s", where) == RAT_IPC_ERR_ALREADY_EXISTS
    assert rat.do("RatCloseSocket", "@s") == RAT_IPC_OK


@pytest.mark.row("E14")
@pytest.mark.parametrize("domain", [AF_UNIX, AF_INET], ids=["unix", "inet"])
def test_socket_that_is_closed_ends_the_waits_by_it(home: shmipc.System, tmp_path: Path, domain: int) -> None:
    def bound(name: str, type: int, backlog: int = 5) -> RatHandle:
        sock = got(ratos.RatCreateSocket(domain, type))
        where: Any = str(tmp_path / name) if domain == AF_UNIX else ("127.0.0.1", 0)
        assert ratos.RatBindSocket(sock, where) == RAT_IPC_OK
        assert type == SOCK_DGRAM or ratos.RatListenSocket(sock, backlog) == RAT_IPC_OK
        return sock

    def connect(sock: RatHandle, to: RatHandle) -> Any:
        return ratos.RatConnectSocket(sock, ratos.RatSocketAddress(to)[1])

    listening, full = bound("listening", SOCK_STREAM), bound("full", SOCK_STREAM, 0)
    far, filling, connecting, late = (got(ratos.RatCreateSocket(domain, SOCK_STREAM)) for _ in range(4))
    assert connect(far, listening) == RAT_IPC_OK
    near = got(ratos.RatAcceptSocket(listening))
    assert connect(filling, listening) == RAT_IPC_OK
    assert connect(late, full) == RAT_IPC_OK
    assert ratos.RatSetHandleFlags(filling, ratos.RAT_HANDLE_NONBLOCKING) == RAT_IPC_OK
    assert wait_until(lambda: ratos.RatSendSocket(filling, bytes(1 << 20))[0] == RAT_IPC_ERR_TIMEOUT, LIMIT)
    time.sleep(0.1)  # the kernel may take up more
    assert wait_until(lambda: ratos.RatSendSocket(filling, bytes(1 << 20))[0] == RAT_IPC_ERR_TIMEOUT, LIMIT)
    assert ratos.RatSetHandleFlags(filling, 0) == RAT_IPC_OK
    datagrams, alone, either, both = (bound(name, SOCK_DGRAM) for name in ("d", "a", "e", "b"))
    event, cq = got(ratos.RatCreateEvent(True, False)), got(ratos.RatCreateCompletionQueue())
    assert ratos.RatSubmitRead(cq, near, 10, 1) == RAT_IPC_OK
    ends: dict[int, Any] = {}
    waits: dict[RatHandle, Any] = {
        alone: lambda: (ratos.RatWaitForObject(alone),),
        either: lambda: ratos.RatWaitForMultipleObjects([event, either], False),
        both: lambda: ratos.RatWaitForMultipleObjects([both, event], True),
        listening: lambda: ratos.RatAcceptSocket(listening),
        near: lambda: ratos.RatRecvSocket(near, 10),
        datagrams: lambda: ratos.RatRecvSocket(datagrams, 10),
        filling: lambda: ratos.RatSendSocket(filling, b"more"),
        connecting: lambda: (connect(connecting, full),),
    }
    accepted = got(ratos.RatAcceptSocket(listening))
    threads = [
        threading.Thread(target=lambda handle=handle, wait=wait: ends.__setitem__(handle, wait()[0]), daemon=True)
        for handle, wait in waits.items()
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert not ends
    strangers: list[int] = []
    for handle, thread in zip(waits, threads, strict=True):
        assert ratos.RatCloseSocket(handle) == RAT_IPC_OK
        strangers += os.pipe()  # perhaps with the number that the socket had
        thread.join(LIMIT)
    assert ends == dict.fromkeys(waits, RAT_IPC_ERR_NOT_CONNECTED)
    assert ratos.RatSendSocket(far, b"late") == (RAT_IPC_OK, 4), "what was submitted goes on"
    assert got(ratos.RatGetCompletion(cq, LIMIT_MS)).misc == b"late"
    assert ratos.RatCloseCompletionQueue(cq) == RAT_IPC_OK
    assert ratos.RatRecvSocket(far, 10) == (RAT_IPC_OK, b"", 0)
    for handle in (far, full, late, accepted):
        assert ratos.RatCloseSocket(handle) == RAT_IPC_OK
    assert ratos.RatCloseEvent(event) == RAT_IPC_OK
    for number in strangers:
        os.close(number)


def test_exception_of_a_signal_handler_is_a_status_and_what_is_none_comes_through(q: RatHandle) -> None:
    class Stop(BaseException):
        pass

    def handle(*_: object) -> None:
        raise raised

    sock = got(ratos.RatCreateSocket(AF_INET, SOCK_DGRAM))
    waits: list[Any] = [
        lambda: ratos.RatGetMessage(q, LIMIT_MS)[0],
        lambda: ratos.RatWaitForObject(sock, LIMIT_MS),
        lambda: ratos.RatRecvSocket(sock, 1)[0],
    ]
    before = signal.signal(signal.SIGALRM, handle)
    try:
        for wait in waits:
            raised: BaseException = shmipc.NotFound("by the handler")
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert wait() == RAT_IPC_ERR_NOT_FOUND
            assert "by the handler" in ratos.detail()
            raised = Stop()
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Stop):
                wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ratos.RatCloseSocket(sock) == RAT_IPC_OK


def test_number_that_is_too_large_is_wrong_and_a_timeout_is_for_ever(q: RatHandle) -> None:
    assert ratos.RatPostMessage(q, msg(1)) == RAT_IPC_OK
    assert ratos.RatGetMessage(q, 10**400)[0] == RAT_IPC_OK
    sock = got(ratos.RatCreateSocket(AF_INET, SOCK_STREAM))
    assert ratos.RatListenSocket(sock, 2**40) == RAT_IPC_ERR_INVALID_ARG
    assert ratos.RatBindSocket(sock, ("127.0.0.1", 99999)) == RAT_IPC_ERR_INVALID_ARG
    assert ratos.RatCreateSemaphore(2, 1)[0] == RAT_IPC_ERR_INVALID_ARG
    ratos.RatCloseSocket(sock)


def test_socket_s_handle_is_of_its_process_alone(q: RatHandle) -> None:
    sock = got(ratos.RatCreateSocket(AF_INET, SOCK_STREAM))
    assert ratos.RatPostMessage(q, msg(1, sock)) == RAT_IPC_ERR_ACCESS_DENIED
    assert ratos.RatReadPipe(sock, 1)[0] == RAT_IPC_ERR_INVALID_ARG, "another kind"
    for wrong in ((None, 1), (AF_INET, "x"), (99, 99)):
        assert ratos.RatCreateSocket(*wrong)[0] == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
    assert ratos.RatConnectSocket(sock, "nonsense") == RAT_IPC_ERR_INVALID_ARG
    assert ratos.RatSendSocket(sock, b"x")[0] == RAT_IPC_ERR_NOT_CONNECTED
    assert ratos.RatCloseSocket(sock) == RAT_IPC_OK
    assert ratos.RatCloseSocket(sock) == RAT_IPC_ERR_INVALID_ARG


@pytest.mark.row("F17")
def test_write_that_a_close_ends_says_what_was_written() -> None:
    _, read, write = ratos.RatCreatePipe(0, 4096)
    ends: list[Any] = []
    thread = threading.Thread(target=lambda: ends.append(ratos.RatWritePipe(write, b"x" * 10_000)))
    thread.start()
    found = 0
    while found < 4096:
        found += ratos.RatReadPipe(read, 4096)[2]
    assert ratos.RatWaitForObject(read, LIMIT_MS) == RAT_IPC_OK, "more was written meanwhile"
    assert ratos.RatClosePipe(write) == RAT_IPC_OK
    thread.join(LIMIT)
    while part := ratos.RatReadPipe(read, 4096)[2]:
        found += part
    assert ends == [(RAT_IPC_ERR_NOT_CONNECTED, found)]
    assert found > 4096
    assert ratos.RatClosePipe(read) == RAT_IPC_OK
