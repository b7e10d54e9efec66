"""Pipes: streams of bytes."""

from typing import Any

from shmipc import _native
from shmipc.facades.ratos.handles import (
    RAT_HANDLE_NONBLOCKING,
    RAT_INVALID_HANDLE,
    RAT_RIGHT_READ,
    RAT_RIGHT_WAIT,
    RAT_RIGHT_WRITE,
    Kind,
    RatHandle,
    adopt,
    close,
    table,
)
from shmipc.facades.ratos.statuses import OK, RatIpcStatus, failed, whole
from shmipc.transport.pipes import CAPACITY, BytePipe


def _adopt(member: _native.Member, index: int, life: int, state: Any) -> BytePipe:
    return BytePipe._adopt(member, index, life, *state)


adopt[Kind.PIPE] = _adopt


def RatCreatePipe(flags: int = 0, capacity: int = CAPACITY) -> tuple[RatIpcStatus, RatHandle, RatHandle]:
    """Make a pipe: a handle of its reading end, and one of its writing end.

    Both travel, each with its one right. An end that is on its way is not open: keep yours until the other process
    has its own, or the stream may end meanwhile.

    Args:
        flags: `RAT_HANDLE_NONBLOCKING`, or 0; see `RatSetHandleFlags`.
        capacity: Bytes written and not yet read at most.
    """
    try:
        blocks = not whole("flags", flags) & RAT_HANDLE_NONBLOCKING
        if flags & ~RAT_HANDLE_NONBLOCKING:
            raise ValueError(f"flags are {flags:#x}; there is {RAT_HANDLE_NONBLOCKING:#x}")
        reader, writer = BytePipe.pair(capacity=capacity)
        reader.blocking = writer.blocking = blocks
        read = table.add(Kind.PIPE, reader, RAT_RIGHT_READ | RAT_RIGHT_WAIT)
        return OK, read, table.add(Kind.PIPE, writer, RAT_RIGHT_WRITE)
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE, RAT_INVALID_HANDLE


def RatReadPipe(pipe: int, size: int) -> tuple[RatIpcStatus, bytes, int]:
    """Read what is there, at least one byte and at most ``size``: the bytes, and how many.

    Returns:
        OK and no bytes: the stream has ended, nobody writes any more. TIMEOUT: the pipe is empty, and does not block.
    """
    try:
        data = table.find(pipe, Kind.PIPE, right=RAT_RIGHT_READ).object.read(size)
        return OK, data, len(data)
    except Exception as error:
        return failed(error), b"", 0


def RatWritePipe(pipe: int, data: bytes | bytearray | memoryview) -> tuple[RatIpcStatus, int]:
    """Write all of it, or, when the pipe does not block, what there is room for: how many bytes.

    Returns:
        NOT_CONNECTED: nobody reads any more, or the handle was closed meanwhile. TIMEOUT: there is no room, and the
        pipe does not block.
    """
    try:
        end: BytePipe = table.find(pipe, Kind.PIPE, right=RAT_RIGHT_WRITE).object
        return OK, end.write(data)
    except Exception as error:
        return failed(error), getattr(error, "written", 0)


def RatClosePipe(pipe: int) -> RatIpcStatus:
    """Close an end."""
    return close(pipe, Kind.PIPE)
