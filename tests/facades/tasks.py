"""Tasks of the resea facade; apart from the tests, so that a worker need not import pytest."""

import os
import random
import time
from typing import Any

import shmipc
from shmipc.facades import resea
from shmipc.facades.resea import IPC_ANY, NOTIFY_ASYNC, OK, error_t, message
from tests.actors import Actor, in_threads

WORK_MSG = 1
LIMIT = 20.0  # seconds; a watchdog


def number(n: int) -> message:
    return message(WORK_MSG, data=b"%d" % n)


def number_in(m: message) -> int:
    assert m.type == WORK_MSG
    return int(m.data)


class Task(Actor):
    """A process that does what a test asks; between two questions its loop receives what is sent to it."""

    def __init__(self) -> None:
        self.met: list[bytes] = []
        self.bits = 0

    def on_message(self, got: shmipc.Message) -> None:
        if got.kind == shmipc.Kind.NOTIFY:
            self.bits |= got.body

    def me(self) -> int:
        return resea.task_self()

    def serve(self, name: str) -> int:
        return int(resea.ipc_serve(name))

    def lookup(self, name: str, timeout_ms: int) -> tuple[int, int, float]:
        status, task = resea.ipc_lookup(name, timeout_ms)
        return int(status), task, time.monotonic()

    # --- rendezvous ---

    def send(self, dst: int, n: int, block: bool = True) -> tuple[int, float]:
        """The status, and when it returned."""
        send = resea.ipc_send if block else resea.ipc_send_noblock
        return int(send(dst, number(n))), time.monotonic()

    def send_until(self, dst: int, n: int) -> int:
        """Without blocking, until the other one waits; how often it did not."""
        deadline, refused = time.monotonic() + LIMIT, 0
        while (status := resea.ipc_send_noblock(dst, number(n))) == error_t.ERR_WOULD_BLOCK:
            refused += 1
            assert time.monotonic() < deadline
        assert status == OK, resea.detail()
        return refused

    def recv(self, src: int) -> tuple[int, int, int, bytes]:
        status, m = resea.ipc_recv(src)
        return int(status), m.type, m.src, m.data

    def call(self, dst: int, data: bytes, type: int = WORK_MSG) -> tuple[int, int, int, bytes]:
        status, m = resea.ipc_call(dst, message(type, data=data))
        return int(status), m.type, m.src, m.data

    def call_in_threads(self, dst: int, count: int) -> list[tuple[int, bytes]]:
        """Statuses and data of as many calls at once, each with its number."""
        found = in_threads([lambda n=n: self.call(dst, b"%d" % n) for n in range(count)])  # type: ignore[misc]
        return [(status, data) for status, _, _, data in found]

    def call_codes(self, dst: int, count: int) -> list[tuple[int, bytes]]:
        found = []
        for n in range(count):
            status, m = resea.ipc_call(dst, number(n))
            found.append((int(status), m.data))
        return found

    def answer(self, count: int) -> list[int]:
        """Answer so many calls with their data, each reply and the next receive in one."""
        sources = []
        m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
        for left in range(count - 1, -1, -1):
            sources.append(m.src)
            reply = message(WORK_MSG, data=b"answer to " + m.data)
            if left:
                m = resea.ASSERT_OK(resea.ipc_replyrecv(m.src, reply))
            else:
                resea.ASSERT_OK(resea.ipc_reply(m.src, reply))
        return sources

    # --- notifications ---

    def notify(self, dst: int, bits: list[int]) -> list[int]:
        return [int(resea.ipc_notify(dst, one)) for one in bits]

    def notify_in_turn(self, dst: int, seen: Any, count: int) -> None:
        """Each bit after the last was seen, at a random time."""
        for n in range(count):
            for _ in range(random.randrange(300)):
                pass
            assert resea.ipc_notify(dst, 1 << n % 63) == OK, resea.detail()
            deadline = time.monotonic() + LIMIT
            while seen[0] <= n:
                assert time.monotonic() < deadline, f"bit {n % 63} of round {n} was not seen"
                os.sched_yield()

    def took(self) -> int:
        """Bits that its loop has received."""
        return self.bits

    # --- asynchronous messages ---

    def offer(self, dst: int, first: int, count: int) -> list[tuple[int, float]]:
        """Statuses, and how long each took."""
        found = []
        for n in range(first, first + count):
            started = time.monotonic()
            found.append((int(resea.async_send(dst, number(n))), time.monotonic() - started))
        return found

    def pull(self, src: int, count: int) -> list[tuple[int, int]]:
        found = []
        for _ in range(count):
            status, m = resea.async_recv(src)
            found.append((int(status), number_in(m) if status == OK else -1))
        return found

    def is_empty(self, dst: int) -> bool:
        return resea.async_is_empty(dst)

    def exchange(self, other: int, count: int) -> int:
        """Send to each other at full rate while pulling; what was pulled is the other's numbers, in order."""
        sent = pulled = 0
        deadline = time.monotonic() + 20 * LIMIT
        while sent < count or pulled < count:
            assert time.monotonic() < deadline, (sent, pulled)
            if sent < count:
                status = resea.async_send(other, number(sent))
                assert status in (OK, error_t.ERR_WOULD_BLOCK), resea.detail()
                sent += status == OK
            status, m = resea.async_recv(other)
            if status == OK:
                assert number_in(m) == pulled
                pulled += 1
            else:
                assert status == error_t.ERR_EMPTY, resea.detail()
        while not resea.async_is_empty(other):
            assert time.monotonic() < deadline
        return pulled

    def serve_pulls(self, dst: int, count: int) -> list[int]:
        """Queue messages, and answer requests for them, one more than there are."""
        for n in range(count):
            assert resea.async_send(dst, number(n)) == OK
        statuses = []
        while len(statuses) <= count:
            m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
            if m.type == resea.ASYNC_MSG:
                statuses.append(int(resea.async_reply(m.src)))
        return statuses

    def resident(self) -> int:
        """Bytes of this process's memory that no other process shares."""
        with open(f"/proc/{os.getpid()}/statm") as told:
            _, resident, shared, *_ = told.read().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def collect(count: int, pull: Any) -> list[tuple[int, int]]:
    """Driven by notifications alone: sources and numbers of so many asynchronous messages."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        m = resea.ASSERT_OK(resea.ipc_recv(IPC_ANY))
        assert m.type == resea.NOTIFICATIONS_MSG
        assert m.notifications.data == NOTIFY_ASYNC
        found += pull()
    return found
