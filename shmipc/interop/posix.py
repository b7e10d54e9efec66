"""POSIX segments, semaphores and message queues that other programs made, in any language.

Thin wrappers on posix_ipc: they open what is there and never unlink it. Names are as the other program has them, with
a slash before ("/jobs") or without. Timeouts and errors are shmipc's: ``None`` waits, ``0`` polls, `Timeout` is never
early; what a signal handler raises, as Ctrl-C's does, ends a wait. posix_ipc itself never waits: it would replace that.
"""

import contextlib
import mmap
import os
import select
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import posix_ipc

from shmipc import _native
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

SLICE_SECONDS = 0.5  # of a wait: who closes the object is heard after so long at most


class _Opened(Closing):
    """What all three have: a name, and an end."""

    name: str
    _closed = False

    def close(self) -> None:
        """Give it up in this process; idempotent. The object itself stays. Who waits in it gets `Closed`."""
        if not self._closed:
            self._closed = True
            self._close()

    def _close(self) -> None:
        raise NotImplementedError

    def _closed_error(self) -> Closed:
        return Closed(f"{self!r} is closed in this process")

    def _check(self) -> None:
        if self._closed:
            raise self._closed_error()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class _Waited(_Opened):
    """One that threads may be inside of: it is given up when the last of them has come out, since the library beneath
    would go on in memory, or a descriptor, that is another's by then.

    No lock, which a signal handler that closes it could find taken by its own thread: each step on the lists is one.
    """

    def __init__(self, name: str, kind: Any) -> None:
        self.name = _slashed(name)
        self._inside: list[None] = []  # an entry for each thread
        self._opened = [_open(self.name, lambda: kind(self.name))]  # empty: given up

    @contextlib.contextmanager
    def _entered(self) -> Iterator[Any]:
        self._inside.append(None)  # before the look: who closes it after that finds us here
        try:
            self._check()
            yield self._opened[0]
        finally:
            self._inside.pop()
            if self._closed:
                self._close()

    def _close(self) -> None:
        if self._inside:
            return  # they are told within SLICE_SECONDS
        try:
            opened = self._opened.pop()
        except IndexError:
            return
        opened.close()

    def _wait(self, timeout: float | None, act: Callable[[float], bool]) -> bool:
        """Call ``act(seconds)``, which may wait so long, until it has done it: True; False: the deadline has passed."""
        deadline = Deadline(timeout)
        while True:
            self._check()
            left = deadline.left()
            if act(SLICE_SECONDS if left is None else min(left, SLICE_SECONDS)):
                return True
            if left is not None and left <= 0:
                return False


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
            access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
            self._map: mmap.mmap | None = mmap.mmap(memory.fd, size, access=access)
        except BaseException:
            self._closed = True
            raise
        finally:
            memory.close_fd()
        self.size = size  # bytes, when it was opened

    @property
    def buf(self) -> memoryview:
        """Its bytes; what is made of them keeps them mapped."""
        return memoryview(self._mapped())

    def array(
        self, shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.uint8, offset: int = 0
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """An ndarray over its bytes from ``offset`` on, without a copy; read-only when the segment is.

        Raises:
            InvalidArgument: A negative offset. TypeError: A dtype of objects, or more bytes than there are.
        """
        mapped, kind = self._mapped(), np.dtype(dtype)
        if offset < 0:
            raise InvalidArgument(f"offset is {offset}; an array begins within the segment")
        if kind.hasobject:
            raise TypeError(f"dtype {kind} holds objects of this process; a segment's bytes are none")
        return np.ndarray(shape, kind, mapped, offset)

    def _mapped(self) -> mmap.mmap:
        found = self._map
        if found is None:
            raise self._closed_error()
        return found

    def _close(self) -> None:
        self._map = None  # unmapped with the last of what was made of it: numpy keeps no export, so close() would unmap


class Semaphore(_Waited):
    """A named semaphore. Raises NotFound, AccessDenied."""

    def __init__(self, name: str) -> None:
        super().__init__(name, _native.PosixSemaphore)

    def acquire(self, timeout: float | None = None) -> None:
        """Take one. Blocks.

        Raises:
            WouldBlock: ``timeout=0`` and there is none.
            Timeout: None came within ``timeout`` seconds.
            Closed: Another thread has closed it here.
        """
        with self._entered() as semaphore:
            if self._wait(timeout, semaphore.acquire):
                return
        if timeout == 0:
            raise WouldBlock(f"semaphore {self.name!r} is at 0")
        raise Timeout(f"semaphore {self.name!r} stayed at 0 for {timeout} s")

    def release(self) -> None:
        """Give one back. Does not block."""
        with self._entered() as semaphore:
            semaphore.release()

    @property
    def value(self) -> int:
        """How many there are at the moment."""
        with self._entered() as semaphore:
            return int(semaphore.value)


class MessageQueue(_Waited):
    """A POSIX message queue: bytes with a priority, the highest first. Raises NotFound, AccessDenied."""

    def __init__(self, name: str) -> None:
        super().__init__(name, posix_ipc.MessageQueue)
        with self._entered() as queue:
            queue.block = False
            self.max_messages = int(queue.max_messages)
            self.message_bytes = int(queue.max_message_size)  # at most

    def send(self, body: bytes, *, priority: int = 0, timeout: float | None = None) -> None:
        """Send bytes; a higher number is more urgent. Blocks while the queue is full.

        Raises:
            TooLarge: More than ``message_bytes``.
            InvalidArgument: A priority that the system does not have.
            MailboxFull: ``timeout=0`` and it is full; Timeout: it stayed so. Both carry the message.
            Closed: Another thread has closed it here.
        """
        if not isinstance(body, bytes):
            raise TypeError(f"a message queue takes bytes, not {type(body).__name__}")
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise TypeError(f"priority must be an int, not {type(priority).__name__}")
        if not 0 <= priority <= posix_ipc.QUEUE_PRIORITY_MAX:
            raise InvalidArgument(f"priority is {priority}; it must be 0 to {posix_ipc.QUEUE_PRIORITY_MAX}")
        with self._entered() as queue:
            if len(body) > self.message_bytes:
                raise TooLarge(
                    f"the message is {len(body)} bytes; queue {self.name!r} takes at most {self.message_bytes}"
                )
            if self._wait_for(queue, select.POLLOUT, timeout, lambda: queue.send(body, 0, priority)):
                return
        full = f"queue {self.name!r} holds {self.max_messages} messages, its capacity"
        if timeout == 0:
            raise MailboxFull(full, message=body)
        raise Timeout(f"{full}, for {timeout} s", message=body)

    def receive(self, timeout: float | None = None) -> tuple[bytes, int]:
        """The most urgent message, the oldest of these, and its priority. Blocks while there is none.

        Raises:
            MailboxEmpty: ``timeout=0`` and there is none; Timeout: none came.
            Closed: Another thread has closed it here.
        """
        found: list[tuple[bytes, int]] = []
        with self._entered() as queue:
            if self._wait_for(queue, select.POLLIN, timeout, lambda: found.append(queue.receive(0))):
                return found[0]
        if timeout == 0:
            raise MailboxEmpty(f"queue {self.name!r} is empty")
        raise Timeout(f"no message came to queue {self.name!r} within {timeout} s")

    def _wait_for(self, queue: Any, event: int, timeout: float | None, act: Callable[[], None]) -> bool:
        """Wait on the descriptor that a queue is on Linux, until ``act`` does not find it busy."""
        poll = select.poll()
        poll.register(queue.mqd, event)

        def attempt(seconds: float) -> bool:
            try:
                act()
            except posix_ipc.BusyError:
                poll.poll(seconds * 1000)
                return False
            return True

        return self._wait(timeout, attempt)

    def __len__(self) -> int:
        with self._entered() as queue:
            return int(queue.current_messages)


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
    except (posix_ipc.ExistentialError, FileNotFoundError):
        raise NotFound(f"no POSIX object of that kind has the name {name!r}") from None
    except (posix_ipc.PermissionsError, PermissionError) as error:
        raise AccessDenied(f"cannot open {name!r}: {error}") from error
