"""Mutexes, locks and read-write locks."""

import enum
from typing import Self

from shmipc import _native
from shmipc.base.errors import NotOwner
from shmipc.base.limits import check_count
from shmipc.transport.mailboxes import HasMembership
from shmipc.transport.sync_objects import NOUNS, SyncObject

READERS = 128
MAX_READERS = 1024


class Locked(enum.IntEnum):
    """How a mutex was got."""

    CLEAN = 1
    ABANDONED = 2  # whoever had it ended without unlocking it: what it protects may be half done


class Mutex(_native.MutexView, SyncObject):
    """A lock that one thread of one process holds. It may lock it again, and unlocks it as often.

    When the thread or its process ends, the next in line gets the mutex and is told that it was abandoned.
    ``lock(timeout=None)``, ``unlock()`` and the ``with`` block are the binding's own.

    Attributes:
        abandoned: Had the last holder died, when this process got it last?
    """

    KIND = _native.SYNC_MUTEX
    NOUN = "mutex"
    FLAGS = _native.SYNC_RECURSIVE
    WAYS = (None, Locked.CLEAN, Locked.ABANDONED)

    def __init__(self, *, name: str | None = None, system: HasMembership | None = None) -> None:
        self._create(name, system, flags=self.FLAGS)

    @classmethod
    def create(cls, name: str | None = None, *, system: HasMembership | None = None) -> Self:
        """Make a mutex; raises NameTaken, OutOfMemory, LimitExceeded."""
        return cls(name=name, system=system)

    def is_locked(self) -> bool:
        """Does anybody have it?"""
        return self.state() == 2


class Lock(_native.LockView, SyncObject):  # type: ignore[misc]  # __enter__ is multiprocessing's
    """`multiprocessing.Lock`: any process or thread may release it, and whoever has it does not get it twice.

    When its holder ends, the next in line gets it, and finds ``abandoned`` true. ``acquire(block=True, timeout=None)``,
    ``release()`` and the ``with`` block are the binding's own.
    """

    KIND = _native.SYNC_MUTEX
    NOUN = "lock"
    FLAGS = _native.SYNC_ANYONE

    def __init__(self, *, name: str | None = None, system: HasMembership | None = None) -> None:
        self._create(name, system, flags=self.FLAGS)

    @classmethod
    def create(cls, name: str | None = None, *, system: HasMembership | None = None) -> Self:
        """Make one; raises NameTaken, OutOfMemory, LimitExceeded."""
        return cls(name=name, system=system)

    def locked(self) -> bool:
        """Does anybody have it?"""
        return self.state() == 2


class RLock(Lock):
    """`multiprocessing.RLock`: its holder, a thread of a process, may acquire it again, and releases it as often."""

    NOUN = "recursive lock"
    FLAGS = _native.SYNC_RECURSIVE | _native.SYNC_RLOCK


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
        self._create(name, system, entries=readers)

    @classmethod
    def create(cls, name: str | None = None, *, readers: int = READERS, system: HasMembership | None = None) -> Self:
        """Make one; raises NameTaken, OutOfMemory, LimitExceeded."""
        return cls(name=name, readers=readers, system=system)

    def lock_read(self, timeout: float | None = None) -> None:
        """Come in as a reader; raises WouldBlock, Timeout, Closed."""
        if not self.enter_read(timeout):
            raise self._refused(timeout)

    def unlock_read(self) -> None:
        """Leave; raises NotOwner when the calling thread is no reader."""
        if not self.leave_read():
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
    def reading(self) -> _native.Side:
        """``with lock.reading:``."""
        return _native.Side(self, True)

    @property
    def writing(self) -> _native.Side:
        """``with lock.writing:``."""
        return _native.Side(self, False)
