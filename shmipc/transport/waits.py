"""Waits on many objects at once."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from shmipc import _native
from shmipc.base.errors import Closed, Timeout, WouldBlock
from shmipc.memory import membership
from shmipc.transport.locks import Lock, Mutex
from shmipc.transport.sync_objects import SyncObject

DESCRIBED = 4  # of those that a wait was for, in the text of its timeout


class Alarm(_native.DueSource):
    """A moment, of this process alone: signalled from then on, until it is set anew.

    A wait goes by what it was set to when the wait began: what another thread sets meanwhile the next wait sees.

    Args:
        delay: Seconds from now; None: not yet set.
    """

    def __init__(self, delay: float | None = None) -> None:
        if delay is not None:
            self.set(delay)

    def set(self, delay: float) -> None:
        """Due in ``delay`` seconds."""
        self.set_due(delay)

    def clear(self) -> None:
        """Not due any more."""
        self.clear_due()


def current_member() -> _native.Member:
    """The member of the current system, for waits on files and processes alone."""
    found = membership.current()
    found.check()
    return found.member


def waited_for(entry: Any) -> Any:
    """What a wait for it waits for: most things themselves, a completion queue its event."""
    return getattr(entry, "_waited_for", entry)


def refused(entries: tuple[Any, ...], timeout: float | None) -> WouldBlock | Timeout:
    """The exception of a wait that was not in time; a timeout names the first few, those that somebody has first."""
    if timeout == 0:
        return WouldBlock(f"none of {len(entries)} is there")
    named = "; ".join(islice(described(entries), DESCRIBED))
    return Timeout(f"a wait for {len(entries)} was not over within {timeout} s{': ' if named else ''}{named}")


def described(entries: tuple[Any, ...]) -> Iterator[str]:
    for of_locks in (True, False):
        for entry in entries:
            if isinstance(entry, SyncObject) and isinstance(entry, Mutex | Lock) is of_locks:
                try:
                    yield entry.describe()
                except Closed:  # by another thread, since the wait was over
                    continue


def note_owner(entry: Any, abandoned: bool) -> None:
    if isinstance(entry, Mutex | Lock):
        entry.abandoned = abandoned


def wait_any(objects: Sequence[Any], timeout: float | None = None) -> int:
    """Wait until one of the objects is signalled, and take it.

    An event is signalled while it is set, a semaphore above 0, a mutex or lock while it is free, a `Mailbox` while it
    has a message, a `BytePipe` reader while it can read, a `BusReader` while it has a frame, a `Process` from its end
    on, an `Alarm` from its moment on, a `CompletionQueue` while a completion can be got, a file (a descriptor, or what
    has ``fileno()``) while it can be read. Taken is an auto-reset event, one of a semaphore, a mutex or lock; the
    others stay as they are. A mutex that was abandoned says so by ``abandoned``.

    Args:
        objects: 1 to 1024, of one system, none twice.
        timeout: Seconds; None waits, 0 looks once.

    Returns:
        The smallest index of those that are signalled; that one alone was taken.

    Raises:
        WouldBlock: ``timeout=0``, and none is.
        Timeout: None was in time.
        InvalidArgument, LimitExceeded: The list is empty, has one twice, or is too long; nothing was taken.
        Closed: One was closed in this process.
    """
    entries = tuple(map(waited_for, objects))
    result = _native.wait_many(entries, _native.WAIT_ANY, timeout, current_member)
    if result is None:
        raise refused(entries, timeout)
    index: int = result[0]
    note_owner(entries[index], result[1])
    return index


def wait_all(objects: Sequence[Any], timeout: float | None = None) -> None:
    """Wait until all of the objects are signalled at once, and take them together.

    Nothing is taken before: a wait that gives up has changed nothing, and nobody has seen anything missing meanwhile.
    It stands in no line: what others have waited for longer goes to them.

    Args:
        objects: As of `wait_any`.
        timeout: Seconds; None waits, 0 looks once.

    Raises:
        WouldBlock: ``timeout=0``, and not all are.
        Timeout: Not all were in time.
        InvalidArgument, LimitExceeded, Closed: As of `wait_any`.
    """
    entries = tuple(map(waited_for, objects))
    result = _native.wait_many(entries, _native.WAIT_ALL, timeout, current_member)
    if result is None:
        raise refused(entries, timeout)
    for index, entry in enumerate(entries):
        note_owner(entry, index in result)


def select(sources: Sequence[Any], timeout: float | None = None) -> list[int]:
    """Wait until one or more of the sources are signalled, and take nothing.

    Args:
        sources: As of `wait_any`.
        timeout: Seconds; None waits, 0 looks once.

    Returns:
        The indexes of all that are signalled, in order; none when the time was up.

    Raises:
        InvalidArgument, LimitExceeded, Closed: As of `wait_any`.
    """
    result = _native.wait_many(tuple(map(waited_for, sources)), _native.WAIT_LOOK, timeout, current_member)
    return [] if result is None else list(result)
