"""Waits for one or several objects."""

from collections.abc import Sequence
from typing import Any

from shmipc import _native
from shmipc.base.deadlines import Deadline
from shmipc.base.errors import Closed, InvalidArgument, Timeout
from shmipc.facades.ratos.handles import RAT_RIGHT_READ, RAT_RIGHT_WAIT, Entry, Kind, table
from shmipc.facades.ratos.queues import LOOK_SECONDS, Queue
from shmipc.facades.ratos.sockets import Socket
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
    """What the core waits for. A socket's number may be another file's once it is closed."""
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
        return _wait([handle], False, seconds(timeout_ms))[0]
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
        return _wait(wanted, everything, limit)
    except Exception as error:
        return failed(error), -1


def _wait(handles: list[int], everything: bool, limit: float | None) -> tuple[RatIpcStatus, int]:
    """The wait, whose status is OK or ABANDONED, and its index; raises what a wait of the core does."""
    sources: list[Any] = []
    sockets: list[Socket] = []
    held: list[_native.Duplicate] = []  # of the sockets, and the signs that they are closed
    for entry in map(entry_of, handles):
        if entry.kind is Kind.SOCKET:
            sockets.append(entry.object)
            held += entry.object.held()
        sources.append(held[-2].number if entry.kind is Kind.SOCKET else source_of(entry))
    if everything:
        _wait_all(sources, sockets, Deadline(limit))
        return _abandoned(sources), 0
    index = wait_any([*sources, *(sign.number for sign in held[1::2])], limit)
    if index >= len(sources):
        raise Closed("a socket of the wait was closed in this process")
    return _abandoned([sources[index]]), index


def _wait_all(sources: list[Any], sockets: list[Socket], deadline: Deadline) -> None:
    """Wait for all; for the end of a socket it is looked every so often, since that is not one of all."""
    while True:
        left = deadline.left()
        is_part = bool(sockets) and (left is None or left > LOOK_SECONDS)
        try:
            wait_all(sources, LOOK_SECONDS if is_part else left)
            return
        except Timeout:
            for one in sockets:
                one.check()
            if not is_part:
                raise


def _abandoned(taken: list[Any]) -> RatIpcStatus:
    return ABANDONED if any(isinstance(one, Mutex) and one.abandoned for one in taken) else OK
