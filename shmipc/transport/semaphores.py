"""Semaphores."""

from typing import Self

from shmipc import _native
from shmipc.base.errors import LimitExceeded
from shmipc.base.limits import check_count
from shmipc.transport.mailboxes import HasMembership
from shmipc.transport.sync_objects import SyncObject


class Semaphore(_native.SemaphoreView, SyncObject):  # type: ignore[misc]  # __enter__ is multiprocessing's
    """A count that is taken one by one and never falls below 0, with the methods of `multiprocessing.Semaphore`.

    It has no owners: what a process has taken when it dies is not given back. ``acquire(block=True, timeout=None)`` and
    the ``with`` block are the binding's own.

    Args:
        value: At the beginning.
        max: That it never exceeds, at most 1 048 575, which is the default.
        name: Under which others of the system find it, or None.
    """

    KIND = _native.SYNC_SEMAPHORE
    NOUN = "semaphore"

    def __init__(
        self,
        value: int = 1,
        max: int | None = None,
        *,
        name: str | None = None,
        system: HasMembership | None = None,
    ) -> None:
        most = _native.SYNC_MAX_VALUE if max is None else check_count("max", max, 0, _native.SYNC_MAX_VALUE)
        check_count("value", value, 0, most)
        self._create(name, system, max=most, initial=value)

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        value: int = 1,
        max: int | None = None,
        system: HasMembership | None = None,
    ) -> Self:
        """Make a semaphore; raises NameTaken, OutOfMemory, LimitExceeded."""
        return cls(value, max, name=name, system=system)

    def release(self, n: int = 1) -> int:
        """Give ``n`` back.

        Returns:
            The value before.

        Raises:
            LimitExceeded: More than ``max``; nothing has changed.
        """
        check_count("n", n, 1, _native.SYNC_MAX_VALUE)
        previous = self.add(n)
        if previous < 0:
            raise LimitExceeded(f"semaphore released too many times: {n} more than its value, the limit is {self.max}")
        return previous

    def get_value(self) -> int:
        """What is left at the moment."""
        return self.value()


class BoundedSemaphore(Semaphore):
    """`multiprocessing.BoundedSemaphore`: never above its value at the beginning."""

    def __init__(self, value: int = 1, *, name: str | None = None, system: HasMembership | None = None) -> None:
        super().__init__(value, value, name=name, system=system)

    @classmethod
    def create(  # type: ignore[override]  # its value is its maximum
        cls, name: str | None = None, *, value: int = 1, system: HasMembership | None = None
    ) -> Self:
        """Make a bounded semaphore; raises NameTaken, OutOfMemory, LimitExceeded."""
        return cls(value, name=name, system=system)
