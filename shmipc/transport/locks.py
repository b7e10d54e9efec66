"""Mutexes, locks and read-write locks."""

import enum
import threading
from types import TracebackType
from typing import Any, Literal, Self

from shmipc import _native
from shmipc.base.errors import NotOwner
from shmipc.base.limits import check_count
from shmipc.transport.mailboxes import HasMembership
from shmipc.transport.sync_objects import NOUNS, SyncObject, span

READERS = 128
MAX_READERS = 1024


class Locked(enum.IntEnum):
    """How a mutex was got."""

    CLEAN = 1
    ABANDONED = 2  # whoever had it ended without unlocking it: what it protects may be half done


class Mutex(SyncObject):
    """A lock that one thread of one process holds. It may lock it again, and unlocks it as often.

    When the thread or its process ends, the next in line gets the mutex and is told that it was abandoned.

    Attributes:
        abandoned: Had the last holder died, when this process got it last?
    """

    KIND = _native.SYNC_MUTEX
    NOUN = "mutex"
    FLAGS = _native.SYNC_RECURSIVE

    def __init__(self, *, name: str | None = None, system: HasMembership | None = None) -> None:
        self.abandoned = False
        self._create(name, system, flags=self.FLAGS)

    def _restore(self, *state: Any) -> None:
        self.abandoned = False

    @classmethod
    def create(cls, name: str | None = None, *, system: HasMembership | None = None) -> Self:
        """Make a mutex; raises NameTaken, OutOfMemory, LimitExceeded."""
        return cls(name=name, system=system)

    def lock(self, timeout: float | None = None) -> Locked:
        """Wait for the mutex, in line, and have it.

        Raises:
            WouldBlock: ``timeout=0``, and somebody else has it.
            Timeout: Not within the timeout; the text names the process that has it.
            Closed: It was closed in this process meanwhile.
        """
        result = self.take(timeout)
        if result == 0:
            raise self._refused(timeout)
        self.abandoned = result == Locked.ABANDONED
        return Locked(result)

    def unlock(self) -> None:
        """Give it back; raises NotOwner when the calling thread does not have it."""
        if not _native.SyncView.unlock(self):
            raise NotOwner(f"only who holds a mutex unlocks it: {self.describe()}")

    def is_locked(self) -> bool:
        """Does anybody have it?"""
        return self.state() == 2

    def __enter__(self) -> Self:
        self.lock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unlock()


class Lock(SyncObject):
    """`multiprocessing.Lock`: any process or thread may release it, and whoever has it does not get it twice.

    When its holder ends, the next in line gets it, and finds ``abandoned`` true.
    """

    KIND = _native.SYNC_MUTEX
    NOUN = "lock"
    FLAGS = _native.SYNC_ANYONE

    def __init__(self, *, name: str | None = None, system: HasMembership | None = None) -> None:
        self.abandoned = False
        self._create(name, system, flags=self.FLAGS)

    def _restore(self, *state: Any) -> None:
        self.abandoned = False

    @classmethod
    def create(cls, name: str | None = None, *, system: HasMembership | None = None) -> Self:
        """Make one; raises NameTaken, OutOfMemory, LimitExceeded."""
        return cls(name=name, system=system)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Wait for it, in line.

        Args:
            block: False: look once.
            timeout: Seconds; None waits, 0 or less looks once.

        Returns:
            Has the caller got it?
        """
        result = self.take(span(block, timeout))
        if result:
            self.abandoned = result == Locked.ABANDONED
        return result > 0

    def release(self) -> None:
        """Give it back; raises ValueError when nobody has it."""
        if not self.unlock():
            raise ValueError("release of a lock that nobody has")

    def locked(self) -> bool:
        """Does anybody have it?"""
        return self.state() == 2

    def __enter__(self) -> bool:  # type: ignore[override]  # as multiprocessing's
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class RLock(Lock):
    """`multiprocessing.RLock`: its holder, a thread of a process, may acquire it again, and releases it as often."""

    NOUN = "recursive lock"
    FLAGS = _native.SYNC_RECURSIVE | _native.SYNC_RLOCK

    def release(self) -> None:
        """Give it back once; raises AssertionError when the calling thread does not have it."""
        if not self.unlock():
            raise AssertionError("attempt to release recursive lock not owned by thread")


NOUNS.update({cls.FLAGS: cls.NOUN for cls in (Mutex, Lock, RLock)})


class RWLock(SyncObject):
    """A lock for many readers or one writer, first in first out: a reader waits behind a writer who came before it.

    A reader that dies leaves, and so does a writer; nobody is told. Not reentrant: a reader that reads again behind a
    waiting writer waits for itself.

    Args:
        name: Under which others of the system find it, or None.
        readers: Inside at a time at most, 1 to 1024.
    """

    KIND = _native.SYNC_RWLOCK
    NOUN = "read-write lock"

    def __init__(self, *, name: str | None = None, readers: int = READERS, system: HasMembership | None = None) -> None:
        check_count("readers", readers, 1, MAX_READERS)
        self._restore()
        self._create(name, system, entries=readers)

    def _restore(self, *state: Any) -> None:
        self._inside = threading.local()

    @classmethod
    def create(cls, name: str | None = None, *, readers: int = READERS, system: HasMembership | None = None) -> Self:
        """Make one; raises NameTaken, OutOfMemory, LimitExceeded."""
        return cls(name=name, readers=readers, system=system)

    def lock_read(self, timeout: float | None = None) -> None:
        """Come in as a reader; raises WouldBlock, Timeout, Closed."""
        entry = self.enter_read(timeout)
        if entry < 0:
            raise self._refused(timeout)
        entries: list[int] = self._inside.__dict__.setdefault("entries", [])
        entries.append(entry)

    def unlock_read(self) -> None:
        """Leave; raises NotOwner when the calling thread is no reader."""
        entries: list[int] = self._inside.__dict__.get("entries", [])
        if not entries or not self.leave_read(entries.pop()):
            raise NotOwner("only a reader that is inside leaves")

    def lock_write(self, timeout: float | None = None) -> None:
        """Come in as the writer, alone; raises WouldBlock, Timeout, Closed."""
        if not self.enter_write(timeout):
            raise self._refused(timeout)

    def unlock_write(self) -> None:
        """Leave; raises NotOwner when the calling thread is not the writer."""
        if not self.leave_write():
            raise NotOwner(f"only the writer that is inside leaves: {self.describe()}")

    @property
    def reading(self) -> "Side":
        """``with lock.reading:``."""
        return Side(self, "read")

    @property
    def writing(self) -> "Side":
        """``with lock.writing:``."""
        return Side(self, "write")


class Side:
    """One side of a read-write lock, as a context manager."""

    def __init__(self, lock: RWLock, side: Literal["read", "write"]) -> None:
        self._lock = lock
        self._side = side

    def __enter__(self) -> RWLock:
        if self._side == "read":
            self._lock.lock_read()
        else:
            self._lock.lock_write()
        return self._lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._side == "read":
            self._lock.unlock_read()
        else:
            self._lock.unlock_write()
