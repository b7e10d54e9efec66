"""The completion queue of the ratos facade: one completion for each submission, with its tag, status and bytes."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import shmipc
from shmipc.facades import ratos
from shmipc.facades.ratos import (
    RAT_IPC_ERR_ABANDONED,
    RAT_IPC_ERR_BUFFER_TOO_SMALL,
    RAT_IPC_ERR_CANCELLED,
    RAT_IPC_ERR_INVALID_ARG,
    RAT_IPC_ERR_NO_RESOURCES,
    RAT_IPC_ERR_NOT_CONNECTED,
    RAT_IPC_ERR_TIMEOUT,
    RAT_IPC_OK,
    RatHandle,
)
from tests.facades.rats import LIMIT_MS, Rat, got, msg

LIMIT = LIMIT_MS / 1000


@pytest.fixture(autouse=True, scope="module")
def rat(home: shmipc.System) -> Any:
    return home.spawn(Rat)


@pytest.fixture
def q(home: shmipc.System) -> Iterator[RatHandle]:
    made = got(ratos.RatCreateNamedMessageQueue("q", 32))
    yield made
    ratos.RatCloseMessageQueue(made)


@pytest.fixture
def cq(home: shmipc.System) -> Iterator[RatHandle]:
    made = got(ratos.RatCreateCompletionQueue(16))
    yield made
    ratos.RatCloseCompletionQueue(made)


def collect(cq: RatHandle, count: int) -> dict[int, ratos.RatCompletion]:
    found = [got(ratos.RatGetCompletion(cq, LIMIT_MS)) for _ in range(count)]
    assert len({completion.tag for completion in found}) == count
    return {completion.tag: completion for completion in found}


def test_reads_and_writes_complete_with_what_they_did(cq: RatHandle) -> None:
    _, read, write = ratos.RatCreatePipe()
    assert ratos.RatSubmitRead(cq, read, 100, 1) == RAT_IPC_OK
    assert ratos.RatSubmitWrite(cq, write, b"x" * 30, 2**64 - 1) == RAT_IPC_OK
    done = collect(cq, 2)
    assert (done[1].status, done[1].bytes, done[1].misc) == (RAT_IPC_OK, 30, b"x" * 30), "a short transfer"
    assert (done[2**64 - 1].status, done[2**64 - 1].bytes, done[2**64 - 1].misc) == (RAT_IPC_OK, 30, None)
    assert [ratos.RatSubmitWrite(cq, write, b"%03d" % n, 7) for n in range(10)] == [RAT_IPC_OK] * 10
    assert [got(ratos.RatGetCompletion(cq, LIMIT_MS)).tag for _ in range(10)] == [7] * 10, "a tag may be used again"
    assert ratos.RatReadPipe(read, 100)[1] == b"".join(b"%03d" % n for n in range(10))
    assert ratos.RatSubmitRead(cq, write, 10, 1) == ratos.RAT_IPC_ERR_ACCESS_DENIED
    for wrong in (-1, 2**64, "tag", None):
        assert ratos.RatSubmitRead(cq, read, 10, wrong) == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
    assert ratos.RatSubmitRead(read, read, 10, 1) == ratos.RatSubmitRead(cq, cq, 10, 1) == RAT_IPC_ERR_INVALID_ARG
    ratos.RatClosePipe(read), ratos.RatClosePipe(write)


def test_messages_are_received_and_sent_as_by_the_blocking_functions(cq: RatHandle, q: RatHandle, rat: Any) -> None:
    assert ratos.RatSubmitReceive(cq, q, 1) == RAT_IPC_OK
    assert ratos.RatSubmitReceive(cq, q, 2, None, 50, 60) == RAT_IPC_OK
    assert rat.post("q", (1, 2, 3, b"any"), (55, 6, 7, b"ranged")) == [0, 0]
    done = collect(cq, 2)
    assert [done[tag].misc.payload for tag in (1, 2)] == [b"any", b"ranged"]
    assert [done[tag].bytes for tag in (1, 2)] == [3, 6]
    assert ratos.RatSubmitReceive(cq, q, 3, 2) == RAT_IPC_OK
    assert rat.post("q", (1, 0, 0, b"long")) == [0]
    assert got(ratos.RatGetCompletion(cq, LIMIT_MS)).status == RAT_IPC_ERR_BUFFER_TOO_SMALL
    assert got(ratos.RatGetMessage(q, 0)).payload == b"long", "it was kept"

    assert ratos.RatSubmitReceive(cq, q, 4) == RAT_IPC_OK
    sent = rat.send.submit("q", (9, 0, 0, b"request"), LIMIT_MS)
    m = got(ratos.RatGetCompletion(cq, LIMIT_MS)).misc
    assert ratos.RatReplyMessage(m, msg(10, 0, 0, b"reply")) == RAT_IPC_OK, "by who has collected it"
    assert sent.result(LIMIT)[::2] == (0, (10, 0, b"reply"))

    assert rat.keep("q", "RatOpenNamedMessageQueue", "q") == RAT_IPC_OK
    serving = rat.serve.submit("q", 2)
    assert ratos.RatSubmitSend(cq, q, msg(20, 5, 0, b"abc"), 5) == RAT_IPC_OK
    assert ratos.RatSubmitSend(cq, q, msg(20, 5, 0, b"abc"), 6, LIMIT_MS, False) == RAT_IPC_OK
    done = collect(cq, 2)
    assert (done[5].misc.header.message, done[5].misc.payload, done[5].bytes) == (21, b"cba", 3)
    assert (done[6].status, done[6].misc) == (RAT_IPC_OK, None)
    serving.result(LIMIT)
    rat.do("RatCloseMessageQueue", "@q")
    assert ratos.RatSubmitSend(cq, q, msg(20), 7, 100) == RAT_IPC_OK
    assert got(ratos.RatGetCompletion(cq, LIMIT_MS)).status == RAT_IPC_ERR_TIMEOUT


def test_death_of_the_server_or_of_who_is_waited_for_completes(system: shmipc.System) -> None:
    cq, mutex = got(ratos.RatCreateCompletionQueue()), got(ratos.RatCreateMutex("held"))
    server: Any = system.spawn(Rat)
    assert server.keep("q", "RatCreateNamedMessageQueue", "mortal", 4) == RAT_IPC_OK
    assert server.keep("m", "RatOpenMutex", "held") == RAT_IPC_OK
    assert server.do("RatLockMutex", "@m") == RAT_IPC_OK
    mortal = got(ratos.RatOpenNamedMessageQueue("mortal"))
    assert ratos.RatSubmitSend(cq, mortal, msg(1), 1) == RAT_IPC_OK
    assert server.get("q")[0] == 1
    assert ratos.RatSubmitSend(cq, mortal, msg(2), 5) == RAT_IPC_OK, "it is never taken"
    assert ratos.RatSubmitWait(cq, got(ratos.RatOpenProcess(server)), 2) == RAT_IPC_OK
    assert ratos.RatSubmitWait(cq, mutex, 3, 50) == RAT_IPC_OK
    assert got(ratos.RatGetCompletion(cq, LIMIT_MS)).status == RAT_IPC_ERR_TIMEOUT
    assert ratos.RatSubmitWait(cq, mutex, 4) == RAT_IPC_OK
    os.kill(shmipc.process(server).pid, signal.SIGKILL)
    done = collect(cq, 4)
    assert [done[n].status for n in (1, 5, 2)] == [RAT_IPC_ERR_NOT_CONNECTED, RAT_IPC_ERR_NOT_CONNECTED, RAT_IPC_OK]
    assert done[4].status == RAT_IPC_ERR_ABANDONED, "as RatWaitForObject says"
    assert ratos.RatUnlockMutex(mutex) == RAT_IPC_OK, "it is the collector's"
    assert ratos.RatCloseCompletionQueue(cq) == ratos.RatCloseMessageQueue(mortal) == RAT_IPC_OK


def test_submitted_send_says_what_a_blocking_one_does(cq: RatHandle, q: RatHandle) -> None:
    small = got(ratos.RatCreateMessageQueue(1))
    assert ratos.RatPostMessage(small, msg(1)) == RAT_IPC_OK
    for timeout_ms, status in ((500, RAT_IPC_ERR_NO_RESOURCES), (0, RAT_IPC_ERR_TIMEOUT)):
        assert ratos.RatSendMessage(small, msg(2), timeout_ms)[0] == status
        assert ratos.RatSubmitSend(cq, small, msg(2), 1, timeout_ms) == RAT_IPC_OK
        assert got(ratos.RatGetCompletion(cq, LIMIT_MS)).status == status
    assert ratos.RatGetMessage(small, 0)[0] == RAT_IPC_OK
    assert ratos.RatSubmitSend(cq, small, msg(2), 1, 0) == RAT_IPC_OK
    assert got(ratos.RatGetCompletion(cq, LIMIT_MS)).status == RAT_IPC_ERR_TIMEOUT
    assert ratos.RatGetMessage(small, 0)[0] == RAT_IPC_ERR_TIMEOUT, "nothing is sent"
    for wrong in ("x", None, 2):
        assert ratos.RatSendMessage(q, msg(1), 50, wrong)[0] == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
        assert ratos.RatSubmitSend(cq, q, msg(1), 1, 50, wrong) == RAT_IPC_ERR_INVALID_ARG  # type: ignore[arg-type]
    again = got(ratos.RatOpenNamedMessageQueue("q"))
    assert ratos.RatSubmitSend(cq, again, msg(3), 2) == ratos.RatSubmitSend(cq, q, msg(4), 3) == RAT_IPC_OK
    assert ratos.RatCloseMessageQueue(again) == RAT_IPC_OK
    closed = got(ratos.RatGetCompletion(cq, LIMIT_MS))
    assert (closed.tag, closed.status) == (2, RAT_IPC_ERR_NOT_CONNECTED)
    assert ratos.RatCancelSubmission(cq, 3) == RAT_IPC_OK
    cancelled = got(ratos.RatGetCompletion(cq, LIMIT_MS))
    assert (cancelled.tag, cancelled.status) == (3, RAT_IPC_ERR_CANCELLED)
    assert ratos.RatGetMessage(q, 0)[0] == RAT_IPC_ERR_TIMEOUT, "both are withdrawn"
    ratos.RatCloseMessageQueue(small)


def test_empty_datagram_is_sent(home: shmipc.System) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, shmipc.CompletionQueue() as queue:
        theirs.settimeout(LIMIT)
        for content in (b"", b"x", b""):
            queue.write(ours, content)
            assert queue.get(LIMIT).error is None
            assert theirs.recv(10) == content


def test_depth_query_cancel_and_close(q: RatHandle, rat: Any) -> None:
    cq = got(ratos.RatCreateCompletionQueue(10))
    started = time.monotonic()
    assert ratos.RatGetCompletion(cq, 0) == (RAT_IPC_ERR_TIMEOUT, None)
    assert ratos.RatGetCompletion(cq, 50) == (RAT_IPC_ERR_TIMEOUT, None)
    assert time.monotonic() - started >= 0.05
    statuses = [ratos.RatSubmitReceive(cq, q, tag) for tag in range(11)]
    assert statuses == [RAT_IPC_OK] * 10 + [RAT_IPC_ERR_NO_RESOURCES]
    assert ratos.RatQueryCompletionQueue(cq) == (RAT_IPC_OK, 10, 10)
    assert ratos.RatCancelSubmission(cq, 3) == RAT_IPC_OK
    assert ratos.RatQueryCompletionQueue(cq) == (RAT_IPC_OK, 10, 9)
    assert ratos.RatCancelSubmission(cq, 3) == RAT_IPC_OK, "done, and not collected"
    assert ratos.RatWaitForObject(cq, LIMIT_MS) == RAT_IPC_OK
    cancelled = got(ratos.RatGetCompletion(cq, -1))
    assert (cancelled.tag, cancelled.status) == (3, RAT_IPC_ERR_CANCELLED)
    assert ratos.RatCancelSubmission(cq, 3) == RAT_IPC_ERR_INVALID_ARG
    assert ratos.RatSubmitReceive(cq, q, 12) == RAT_IPC_OK
    assert rat.post("q", (77,)) == [0]
    arrived = got(ratos.RatGetCompletion(cq, LIMIT_MS))
    assert (arrived.status, arrived.misc.header.message) == (RAT_IPC_OK, 77)

    waiting: list[Any] = []
    started = time.monotonic()
    assert ratos.RatCloseCompletionQueue(cq) == RAT_IPC_OK
    assert time.monotonic() - started < 10.0
    assert rat.post("q", (78,)) == [0]
    assert [got(ratos.RatGetCompletion(cq, -1)).status for _ in range(9)] == [RAT_IPC_ERR_CANCELLED] * 9
    waits = threading.Thread(target=lambda: waiting.append(ratos.RatGetCompletion(cq, -1)))
    waits.start()
    waits.join(LIMIT)
    assert waiting == [(RAT_IPC_ERR_INVALID_ARG, None)]
    assert got(ratos.RatGetMessage(q, LIMIT_MS)).header.message == 78, "no message was swallowed"
    assert ratos.RatQueryCompletionQueue(cq)[0] == RAT_IPC_ERR_INVALID_ARG, "the handle has gone with the last of it"
    twice, event = got(ratos.RatCreateCompletionQueue(4)), got(ratos.RatCreateEvent(True, False))
    assert ratos.RatSubmitReceive(twice, q, 7) == ratos.RatSubmitWait(twice, event, 7) == RAT_IPC_OK
    assert ratos.RatCancelSubmission(twice, 7) == RAT_IPC_OK
    assert got(ratos.RatGetCompletion(twice, LIMIT_MS)).status == RAT_IPC_ERR_CANCELLED
    assert ratos.RatQueryCompletionQueue(twice) == (RAT_IPC_OK, 4, 1), "the oldest of the tag alone"
    assert ratos.RatSetEvent(event) == RAT_IPC_OK
    assert got(ratos.RatGetCompletion(twice, LIMIT_MS)) == ratos.RatCompletion(7, RAT_IPC_OK)
    assert ratos.RatCloseCompletionQueue(twice) == ratos.RatCloseEvent(event) == RAT_IPC_OK
    empty = got(ratos.RatCreateCompletionQueue(4))
    assert ratos.RatCloseCompletionQueue(empty) == RAT_IPC_OK
    assert ratos.RatQueryCompletionQueue(empty)[0] == RAT_IPC_ERR_INVALID_ARG
    assert ratos.RatCloseCompletionQueue(cq) == ratos.RatSubmitReceive(cq, q, 1) == RAT_IPC_ERR_INVALID_ARG
    for wrong in (0, -1, "x"):
        assert ratos.RatCreateCompletionQueue(wrong)[0] != RAT_IPC_OK  # type: ignore[arg-type]
