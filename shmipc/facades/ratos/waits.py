"""Waits for one or several objects."""

from collections.abc import Sequence
from typing import Any

from shmipc.base.errors import InvalidArgument
from shmipc.facades.ratos.handles import RAT_RIGHT_READ, RAT_RIGHT_WAIT, Entry, Kind, table
from shmipc.facades.ratos.queues import Queue
from shmipc.facades.ratos.statuses import (
    ABANDONED,
    OK,
    RAT_INFINITE,
    RatIpcStatus,
    check_flag,
    failed,
    seconds,
)
from shmipc.transport.locks import Mutex
from shmipc.transport.waits import wait_all, wait_any

RAT_WAIT_MOST = 64  # handles in one wait
WAITABLE = (
    *(Kind.QUEUE, Kind.EVENT, Kind.MUTEX, Kind.SEMAPHORE, Kind.PIPE, Kind.SOCKET, Kind.PROCESS),
    Kind.COMPLETIONS,
)


def entry_of(handle: Any) -> Entry:
    entry = table.find(handle, *WAITABLE)
    if not entry.rights & (RAT_RIGHT_WAIT | (RAT_RIGHT_READ if entry.kind is Kind.QUEUE else 0)):
        table.find(handle, right=RAT_RIGHT_WAIT)  # raises
    return entry


def source_of(entry: Entry) -> Any:
    """What the core waits for."""
    if entry.kind is Kind.QUEUE:
        queue: Queue = entry.object
        queue.receives()
        return queue.box
    if entry.kind is Kind.COMPLETIONS:
        return entry.object.queue
    return entry.object.process if entry.kind is Kind.PROCESS else entry.object


def RatWaitForObject(handle: int, timeout_ms: int = RAT_INFINITE) -> RatIpcStatus:
    """Wait until an object is signalled, and take it.

    A queue or the reading end of a pipe is signalled while something is there, a socket while it can be read, an event
    while it is set, a semaphore above 0, a mutex while it is free, a process from its end on. Taken is an event that is
    not reset by hand, one of a semaphore, a mutex; the others stay as they are.

    Returns:
        ABANDONED: the mutex is the caller's, whoever had it has ended. INVALID_ARG: no such handle, or one that cannot
        be waited for; NOT_CONNECTED: the handle was closed meanwhile.
    """
    try:
        limit = seconds(timeout_ms)
        source = source_of(entry_of(handle))
        wait_any([source], limit)
        return _abandoned([source])
    except Exception as error:
        return failed(error)


def RatWaitForMultipleObjects(
    handles: Sequence[int], waitAll: bool, timeout_ms: int = RAT_INFINITE
) -> tuple[RatIpcStatus, int]:
    """Wait until one of several objects is signalled, or all are at once.

    Args:
        handles: 1 to 64, none twice.
        waitAll: True: take all together; nothing is taken before.

    Returns:
        The smallest index of those that are signalled, which alone was taken; 0 when all were. -1 on failure, when
        nothing was taken. ABANDONED: that one is a mutex, or one of all is, which the caller has now.
    """
    try:
        limit, everything = seconds(timeout_ms), check_flag("waitAll", waitAll)
        wanted = list(handles)
        if not 1 <= len(wanted) <= RAT_WAIT_MOST:
            raise InvalidArgument(f"{len(wanted)} handles; there must be 1 to {RAT_WAIT_MOST}")
        if len({int(handle) for handle in wanted}) != len(wanted):
            raise InvalidArgument("a handle is there twice")
        sources = [source_of(entry_of(handle)) for handle in wanted]
        if everything:
            wait_all(sources, limit)
            return _abandoned(sources), 0
        index = wait_any(sources, limit)
        return _abandoned([sources[index]]), index
    except Exception as error:
        return failed(error), -1


def _abandoned(taken: list[Any]) -> RatIpcStatus:
    return ABANDONED if any(isinstance(one, Mutex) and one.abandoned for one in taken) else OK
