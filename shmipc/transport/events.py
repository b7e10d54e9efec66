"""Events."""

from typing import Self

from shmipc import _native
from shmipc.transport.mailboxes import HasMembership
from shmipc.transport.sync_objects import SyncObject


class Event(SyncObject):
    """A flag that processes wait for, with the methods of `multiprocessing.Event`.

    A manual-reset event, which it is unless said otherwise, releases everybody who waits and stays set until
    `clear`; cleared at once, it may have released only some of them. An auto-reset event releases exactly one, the one
    that has waited longest, and is then not set; set twice while nobody waits it releases one.

    Args:
        name: Under which others of the system find it, or None.
        manual_reset: False: auto-reset.
        initial: Is it set from the beginning?
        system: Where; the current system by default.

    Raises:
        NameTaken: The name belongs to a living object.
        OutOfMemory, LimitExceeded: Shared memory, or a table of the system, is exhausted.
    """

    KIND = _native.SYNC_EVENT
    NOUN = "event"

    def __init__(
        self,
        *,
        name: str | None = None,
        manual_reset: bool = True,
        initial: bool = False,
        system: HasMembership | None = None,
    ) -> None:
        self._create(name, system, flags=0 if manual_reset else _native.SYNC_AUTO, initial=int(bool(initial)))

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        manual_reset: bool = True,
        initial: bool = False,
        system: HasMembership | None = None,
    ) -> Self:
        """Make an event; arguments and errors as of the class."""
        return cls(name=name, manual_reset=manual_reset, initial=initial, system=system)

    @property
    def manual_reset(self) -> bool:
        """Does it stay set until `clear`?"""
        return not self.flags & _native.SYNC_AUTO

    def set(self) -> None:
        """Set it. Never blocks."""
        self.put(True)

    def clear(self) -> None:
        """It is not set any more. Never blocks."""
        self.put(False)

    def is_set(self) -> bool:
        """Is it set? Takes nothing."""
        return self.state() == 1

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; an auto-reset event is then the caller's alone, and not set.

        Args:
            timeout: Seconds; None waits, 0 or less looks once.

        Returns:
            Was it set in time?

        Raises:
            Closed: It was closed in this process meanwhile.
        """
        return self.take(_native.span(True, timeout)) > 0
