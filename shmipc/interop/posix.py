"""POSIX segments, semaphores and message queues that other programs made, in any language.

Thin wrappers on posix_ipc: they open what is there and never unlink it. Names are as the other program has them, with
a slash before ("/jobs") or without. Timeouts and errors are shmipc's: ``None`` waits, ``0`` polls, `Timeout` is never
early; Ctrl-C ends a wait.
"""

import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import posix_ipc

from shmipc.base.closing import Closing
from shmipc.base.deadlines import Deadline
from shmipc.base.errors import (
    AccessDenied,
    Closed,
    InvalidArgument,
    MailboxEmpty,
    MailboxFull,
    NotFound,
    Timeout,
    TooLarge,
    WouldBlock,
)


class _Opened(Closing):
    """What all three have: a name, and an end."""

    name: str
    _closed = False

    def close(self) -> None:
        """Give it up in this process; idempotent. The object itself stays."""
        if not self._closed:
            self._closed = True
            self._close()

    def _close(self) -> None:
        raise NotImplementedError

    def _check(self) -> None:
        if self._closed:
            raise Closed(f"{self!r} is closed in this process")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Segment(_Opened):
    """A shared memory object, mapped whole.

    Args:
        name: As given to ``shm_open``.
        readonly: Map it so that nobody can write through it.

    Raises:
        NotFound, AccessDenied; InvalidArgument: it has no bytes yet.
    """

    def __init__(self, name: str, *, readonly: bool = False) -> None:
        self.name = _slashed(name)
        memory = _open(self.name, lambda: posix_ipc.SharedMemory(self.name, read_only=readonly))
        try:
            size = os.fstat(memory.fd).st_size
            if size == 0:
                raise InvalidArgument(f"segment {self.name!r} has no bytes: its maker is at work, or died there")
            self._map = mmap.mmap(memory.fd, size, access=mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE)
        except BaseException:
            self._closed = True
            raise
        finally:
            memory.close_fd()
        self.size = size  # bytes, when it was opened

    @property
    def buf(self) -> memoryview:
        """Its bytes; what is made of them keeps them mapped."""
        self._check()
        return memoryview(self._map)

    def array(
        self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.uint8, offset: int = 0
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """An ndarray over its bytes from ``offset`` on, without a copy; read-only when the segment is."""
        self._check()
        return np.ndarray(shape, dtype, self._map, offset)

    def _close(self) -> None:
        try:
            self._map.close()
        except BufferError:
            pass  # arrays still refer to it: unmapped with the last of them


class Semaphore(_Opened):
    """A named semaphore. Raises NotFound, AccessDenied."""

    def __init__(self, name: str) -> None:
        self.name = _slashed(name)
        self._semaphore = _open(self.name, lambda: posix_ipc.Semaphore(self.name))

    def acquire(self, timeout: float | None = None) -> None:
        """Take one. Blocks.

        Raises:
            WouldBlock: ``timeout=0`` and there is none.
            Timeout: None came within ``timeout`` seconds.
        """
        self._check()
        deadline = Deadline(timeout)
        try:
            _wait(deadline, self._semaphore.acquire)
        except posix_ipc.BusyError:
            if timeout == 0:
                raise WouldBlock(f"semaphore {self.name!r} is at 0") from None
            raise Timeout(f"semaphore {self.name!r} stayed at 0 for {timeout} s") from None

    def release(self) -> None:
        """Give one back. Does not block."""
        self._check()
        self._semaphore.release()

    @property
    def value(self) -> int:
        """How many there are at the moment."""
        self._check()
        return int(self._semaphore.value)

    def _close(self) -> None:
        self._semaphore.close()


class MessageQueue(_Opened):
    """A POSIX message queue: bytes with a priority, the highest first. Raises NotFound, AccessDenied."""

    def __init__(self, name: str) -> None:
        self.name = _slashed(name)
        self._queue = _open(self.name, lambda: posix_ipc.MessageQueue(self.name))
        self.max_messages = int(self._queue.max_messages)
        self.message_bytes = int(self._queue.max_message_size)  # at most

    def send(self, body: bytes, *, priority: int = 0, timeout: float | None = None) -> None:
        """Send bytes; a higher number is more urgent. Blocks while the queue is full.

        Raises:
            TooLarge: More than ``message_bytes``.
            MailboxFull: ``timeout=0`` and it is full; Timeout: it stayed so. Both carry the message.
        """
        self._check()
        if len(body) > self.message_bytes:
            raise TooLarge(f"the message is {len(body)} bytes; queue {self.name!r} takes at most {self.message_bytes}")
        deadline = Deadline(timeout)
        try:
            _wait(deadline, lambda left: self._queue.send(body, left, priority))
        except posix_ipc.BusyError:
            full = f"queue {self.name!r} holds {self.max_messages} messages, its capacity"
            if timeout == 0:
                raise MailboxFull(full, message=body) from None
            raise Timeout(f"{full}, for {timeout} s", message=body) from None

    def receive(self, timeout: float | None = None) -> tuple[bytes, int]:
        """The most urgent message, the oldest of these, and its priority. Blocks while there is none.

        Raises:
            MailboxEmpty: ``timeout=0`` and there is none; Timeout: none came.
        """
        self._check()
        deadline = Deadline(timeout)
        found: list[tuple[bytes, int]] = []
        try:
            _wait(deadline, lambda left: found.append(self._queue.receive(left)))
        except posix_ipc.BusyError:
            if timeout == 0:
                raise MailboxEmpty(f"queue {self.name!r} is empty") from None
            raise Timeout(f"no message came to queue {self.name!r} within {timeout} s") from None
        return found[0]

    def __len__(self) -> int:
        self._check()
        return int(self._queue.current_messages)

    def _close(self) -> None:
        self._queue.close()


def _slashed(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    bare = name.removeprefix("/")
    if not bare or "/" in bare or "\0" in bare:
        raise InvalidArgument(f"name is {name!r}; it must be a file name, with or without a slash before it")
    return "/" + bare


def _open(name: str, make: Any) -> Any:
    try:
        return make()
    except posix_ipc.ExistentialError:
        raise NotFound(f"no POSIX object of that kind has the name {name!r}") from None
    except posix_ipc.PermissionsError as error:
        raise AccessDenied(f"cannot open {name!r}: {error}") from error


def _wait(deadline: Deadline, act: Any) -> None:
    """Call ``act(seconds left)`` until it is done or the deadline has passed; signals are handled in between."""
    while True:
        try:
            act(deadline.left())
            return
        except posix_ipc.SignalError:  # its handler has run, and did not raise
            continue
        except posix_ipc.BusyError:  # its clock is the wall's, which may have been set
            left = deadline.left()
            if left is not None and left <= 0:
                raise
