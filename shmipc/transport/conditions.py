"""Conditions and barriers, with the methods of multiprocessing's."""

import threading
import time
from collections.abc import Callable
from typing import Any, Self

from shmipc import _native
from shmipc.base.errors import InvalidArgument
from shmipc.base.limits import check_count
from shmipc.transport.locks import Lock, RLock
from shmipc.transport.mailboxes import HasMembership, membership_of
from shmipc.transport.sync_objects import SyncObject


class Condition(_native.ConditionView, SyncObject):  # type: ignore[misc]  # __enter__ is multiprocessing's
    """`multiprocessing.Condition`: wait, with a lock given back meanwhile, until another process notifies.

    First in first out. One who dies while it waits is not counted: a notice goes to one who lives. One who dies with
    the lock leaves it to the next, as the lock says.

    Args:
        lock: A `Lock` or `RLock`, whose system is the condition's; None: an RLock of its own.
        name: Under which others of the system find it; they give the same lock to `open`.

    Raises:
        TypeError: The lock is none of these.
        Closed: The lock is closed in this process.
        InvalidArgument: It is of another system than ``system``.
    """

    KIND = _native.SYNC_CONDITION
    NOUN = "condition"

    def __init__(
        self,
        lock: Lock | None = None,
        *,
        name: str | None = None,
        system: HasMembership | None = None,
    ) -> None:
        self._lock = RLock(system=system) if lock is None else lock
        self._create(name, member_with(self._lock, system))

    @classmethod
    def open(  # type: ignore[override]  # a condition is nothing without its lock
        cls,
        name: str,
        lock: Lock,
        *,
        timeout: float | None = 0.0,
        system: HasMembership | None = None,
    ) -> Self:
        """Open the condition of that name, with the lock that its maker has too.

        Args:
            lock: Opened before, under a name of its own or by unpickling; that it is the same is not checked.
            timeout: Seconds to wait for the condition to appear; 0 looks once.

        Raises:
            NotFound: There is none.
            InvalidArgument: It is of another kind, or the lock of another system than ``system``.
            TypeError, Closed: The lock is no lock, or closed.
        """
        return cls._open(name, timeout, member_with(lock, system), lock)

    def _state(self) -> tuple[Any, ...]:
        return (self._lock,)

    def _restore(self, *state: Any) -> None:
        if state:
            self._lock = state[0]

    @property
    def lock(self) -> Lock:
        """The lock that it is waited for with."""
        return self._lock

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock; see `Lock.acquire`."""
        return self._lock.acquire(block, timeout)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Give the lock back, wait until notified, and have it again, however long that takes.

        Args:
            timeout: Seconds to be notified in; None waits.

        Returns:
            Was it notified in time?

        Raises:
            RuntimeError: The caller does not have the lock.
        """
        return self.wait_notified(self._lock, _native.span(True, timeout))

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until the predicate, called with the lock, is true; its last result."""
        seconds = _native.span(True, timeout)
        until = None if seconds is None else time.monotonic() + seconds
        result = predicate()
        while not result:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def _check_lock(self) -> None:
        if not (self._lock.is_mine() if isinstance(self._lock, RLock) else self._lock.locked()):
            raise RuntimeError("a condition is notified with its lock held")

    def notify(self, n: int = 1) -> None:
        """Notify the ``n`` that have waited longest. The caller has the lock, else RuntimeError."""
        self._check_lock()
        self.notify_waiting(check_count("n", n, 0, _native.SYNC_MAX_VALUE))

    def notify_all(self) -> None:
        """Notify all that wait."""
        self.notify(_native.SYNC_MAX_VALUE)

    def close(self) -> None:
        """Close this process's hold of the condition, not of its lock."""
        super().close()


def member_with(lock: Lock, system: HasMembership | None) -> _native.Member:
    """The member that a condition with this lock is made for; raises TypeError, Closed, InvalidArgument."""
    if not isinstance(lock, Lock):
        raise TypeError(f"the lock of a condition is a shmipc.Lock or RLock, not a {type(lock).__name__}")
    lock.locked()  # Closed, if it is
    if system is not None and membership_of(system).member is not lock.member:
        raise InvalidArgument("the lock of a condition is of another system")
    return lock.member


class Barrier(SyncObject):
    """`multiprocessing.Barrier`: a fixed number of threads of any processes wait until all have come.

    When one dies that waits, or that runs the action, the barrier is broken, so that nobody waits for it. One who dies
    before it has come is not known: wait with a timeout.

    Args:
        parties: How many it waits for, at least 1.
        action: Called by the last that comes, before any goes on.
        timeout: Of `wait` when nothing is said there, in seconds.
    """

    KIND = _native.SYNC_BARRIER
    NOUN = "barrier"

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        name: str | None = None,
        system: HasMembership | None = None,
    ) -> None:
        self._restore(action, timeout)
        self._create(name, system, max=check_count("parties", parties, 1, _native.SYNC_MAX_VALUE))

    def _state(self) -> tuple[Any, ...]:
        return self._action, self._timeout

    def _restore(self, *state: Any) -> None:
        self._action, self._timeout = state or (None, None)

    def wait(self, timeout: float | None = None) -> int:
        """Come, and wait until all have.

        Args:
            timeout: Seconds; then the barrier is broken.

        Returns:
            A number from 0 to ``parties - 1``, another for each.

        Raises:
            threading.BrokenBarrierError: It is broken, or was reset or broken while the caller waited.
        """
        action, seconds = self._action, _native.span(True, self._timeout if timeout is None else timeout)
        try:
            index, acts = self.arrive(seconds, action is None)
            if acts and action is not None:
                action()
                if not self.open_barrier():
                    index = -1
        except BaseException:  # that of a signal handler, too, before the action has begun
            self.break_mine()
            raise
        if index < 0:
            raise threading.BrokenBarrierError
        return index

    def reset(self) -> None:
        """As on the first day; whoever waits gets BrokenBarrierError."""
        self.reset_barrier()

    def abort(self) -> None:
        """Break it: whoever waits, and whoever comes until `reset`, gets BrokenBarrierError."""
        self.break_barrier()

    @property
    def parties(self) -> int:
        """How many it waits for."""
        return self.max

    @property
    def n_waiting(self) -> int:
        """How many have come and wait."""
        return self.arrived()

    @property
    def broken(self) -> bool:
        """Is it broken?"""
        return self.is_broken()
