"""Processes that use the ratos facade; apart from the tests, so that a worker need not import pytest."""

import os
import threading
import time
import zlib
from typing import Any

import shmipc
from shmipc.facades import ratos
from shmipc.facades.ratos import (
    RAT_INVALID_HANDLE,
    RatGetMessage,
    RatHandle,
    RatMapSharedMemory,
    RatMessage,
    RatMessageHeader,
    RatOpenNamedMessageQueue,
    RatOpenSharedMemory,
    RatPostMessage,
    RatReplyMessage,
    RatSendMessage,
)
from tests.actors import Actor

LIMIT_MS = 20_000  # a watchdog


def msg(message: int, wparam: int = 0, lparam: int = 0, payload: bytes = b"", size: int | None = None) -> RatMessage:
    length = len(payload) if size is None else size
    return RatMessage(RatMessageHeader(message, wparam, lparam, RAT_INVALID_HANDLE, length), payload)


def got(answer: tuple[ratos.RatIpcStatus, Any]) -> Any:
    """The value behind an OK."""
    status, value = answer
    assert status == ratos.RAT_IPC_OK, (status, ratos.detail())
    return value


class Rat(Actor):
    """A process that has handles of its own, under names that the test gives them."""

    def __init__(self) -> None:
        self.handles: dict[str, RatHandle] = {}
        self.kept: list[Any] = []

    def do(self, function: str, *args: Any) -> Any:
        """Call a function of the facade; "@q" is the handle that is kept under "q"."""
        named = [self.handles[a[1:]] if isinstance(a, str) and a.startswith("@") else a for a in args]
        return getattr(ratos, function)(*named)

    def keep(self, under: str, function: str, *args: Any) -> int:
        """The same, and keep the handle that it returns."""
        status, self.handles[under] = self.do(function, *args)
        return int(status)

    def use_number(self, function: str, number: Any) -> int:
        """Use a number that another process knows as its handle."""
        answer = getattr(ratos, function)(number)
        return int(answer if not isinstance(answer, tuple) else answer[0])

    def post(self, name: str, *messages: tuple[Any, ...]) -> list[int]:
        q = got(RatOpenNamedMessageQueue(name))
        statuses = [int(RatPostMessage(q, msg(*fields[:4]), *fields[4:])) for fields in messages]
        ratos.RatCloseMessageQueue(q)
        return statuses

    def get(self, under: str, timeout_ms: int = LIMIT_MS) -> tuple[int, int, int, int, bytes]:
        m = got(RatGetMessage(self.handles[under], timeout_ms))
        self.kept.append(m)
        return m.header.message, m.header.wparam, m.header.lparam, m.header.size, m.payload

    def send(self, name: str, fields: tuple[Any, ...], timeout_ms: int, want_reply: bool = True) -> tuple[Any, ...]:
        """Status, seconds, and what was replied."""
        q = got(RatOpenNamedMessageQueue(name))
        started = time.monotonic()
        status, reply = RatSendMessage(q, msg(*fields), timeout_ms, want_reply)
        took = time.monotonic() - started
        ratos.RatCloseMessageQueue(q)
        return int(status), took, None if reply is None else (reply.header.message, reply.header.wparam, reply.payload)

    def serve(self, under: str, count: int) -> None:
        """Reply to so many messages with their payload reversed."""
        for _ in range(count):
            m = got(RatGetMessage(self.handles[under], LIMIT_MS))
            assert (
                RatReplyMessage(m, msg(m.header.message + 1, m.header.wparam, 0, m.payload[::-1])) == ratos.RAT_IPC_OK
            )

    def take_and_hold(self, under: str, told: Any) -> None:
        self.kept.append(got(RatGetMessage(self.handles[under], LIMIT_MS)))
        shmipc.send(told, "taken", tag=1)
        threading.Event().wait()

    def reply(self) -> int:
        """Reply to what was got last."""
        return int(RatReplyMessage(self.kept.pop(), msg(7)))

    # --- shared memory ---

    def map(self, under: str, read_only: bool = False) -> int:
        status, addr, size = RatMapSharedMemory(self.handles[under], read_only)
        self.kept.append(addr)
        return size if status == ratos.RAT_IPC_OK else -int(status)

    def unmap(self) -> int:
        addr = self.kept.pop()
        return int(ratos.RatUnmapSharedMemory(addr, len(addr)))

    def fill(self, pattern: bytes) -> None:
        self.kept[-1][: len(pattern)] = pattern

    def read(self, count: int) -> bytes:
        return bytes(self.kept[-1][:count])

    def post_filled(self, name: str, target: str, size: int) -> int:
        """Post shared memory, with random bytes in it, and close it at once; their checksum."""
        shm = got(ratos.RatCreateSharedMemory(name, size))
        status, addr, size = RatMapSharedMemory(shm)
        assert status == ratos.RAT_IPC_OK
        assert addr is not None
        addr[:] = os.urandom(size)
        checksum = zlib.crc32(addr)
        q = got(RatOpenNamedMessageQueue(target))
        assert RatPostMessage(q, msg(100, shm)) == ratos.RAT_IPC_OK
        assert ratos.RatUnmapSharedMemory(addr, size) == ratos.RAT_IPC_OK
        assert ratos.RatCloseSharedMemory(shm) == ratos.RAT_IPC_OK
        assert ratos.RatCloseMessageQueue(q) == ratos.RAT_IPC_OK
        return checksum

    def write_and_set(self, rounds: int) -> None:
        """Write a pattern, set the event, and wait until it was compared."""
        written, compared = got(ratos.RatOpenEvent("written")), got(ratos.RatOpenEvent("compared"))
        shm = got(RatOpenSharedMemory("seen"))
        _, addr, size = RatMapSharedMemory(shm)
        assert addr is not None
        for n in range(rounds):
            addr[:] = bytes([n % 251]) * len(addr)
            assert ratos.RatSetEvent(written) == ratos.RAT_IPC_OK
            assert ratos.RatWaitForObject(compared, LIMIT_MS) == ratos.RAT_IPC_OK
        ratos.RatUnmapSharedMemory(addr, size)
        for close, handle in (
            *((ratos.RatCloseEvent, event) for event in (written, compared)),
            (ratos.RatCloseSharedMemory, shm),
        ):
            assert close(handle) == ratos.RAT_IPC_OK
