"""What a RatOS function returns, and how exceptions become that."""

import errno
from enum import IntEnum
from typing import Any

from shmipc.base import errors
from shmipc.base.deadlines import in_seconds
from shmipc.base.failures import Failures


class RatIpcStatus(IntEnum):
    """0 to 9 as the seed has them."""

    RAT_IPC_OK = 0
    RAT_IPC_ERR_UNKNOWN = 1
    RAT_IPC_ERR_NOT_FOUND = 2
    RAT_IPC_ERR_ACCESS_DENIED = 3
    RAT_IPC_ERR_NO_RESOURCES = 4
    RAT_IPC_ERR_INVALID_ARG = 5
    RAT_IPC_ERR_ALREADY_EXISTS = 6
    RAT_IPC_ERR_NOT_CONNECTED = 7
    RAT_IPC_ERR_BUFFER_TOO_SMALL = 8
    RAT_IPC_ERR_TIMEOUT = 9
    RAT_IPC_ERR_CANCELLED = 10  # a quit is next; a request that its sender waits for no more; an aborted thread
    RAT_IPC_ERR_ABANDONED = 11  # the mutex is the caller's: whoever had it has ended


OK = RatIpcStatus.RAT_IPC_OK
UNKNOWN = RatIpcStatus.RAT_IPC_ERR_UNKNOWN
NOT_FOUND = RatIpcStatus.RAT_IPC_ERR_NOT_FOUND
ACCESS_DENIED = RatIpcStatus.RAT_IPC_ERR_ACCESS_DENIED
NO_RESOURCES = RatIpcStatus.RAT_IPC_ERR_NO_RESOURCES
INVALID_ARG = RatIpcStatus.RAT_IPC_ERR_INVALID_ARG
ALREADY_EXISTS = RatIpcStatus.RAT_IPC_ERR_ALREADY_EXISTS
NOT_CONNECTED = RatIpcStatus.RAT_IPC_ERR_NOT_CONNECTED
BUFFER_TOO_SMALL = RatIpcStatus.RAT_IPC_ERR_BUFFER_TOO_SMALL
TIMEOUT = RatIpcStatus.RAT_IPC_ERR_TIMEOUT
CANCELLED = RatIpcStatus.RAT_IPC_ERR_CANCELLED
ABANDONED = RatIpcStatus.RAT_IPC_ERR_ABANDONED

RAT_INFINITE = 0xFFFFFFFF  # of a timeout: wait for ever; so does a negative one

_failures: Failures[RatIpcStatus] = Failures(
    [
        (errors.NotFound, NOT_FOUND),
        (errors.NameTaken, ALREADY_EXISTS),
        (errors.AccessDenied, ACCESS_DENIED),
        (errors.MailboxFull, NO_RESOURCES),
        (errors.LimitExceeded, NO_RESOURCES),
        (errors.Starved, NO_RESOURCES),
        (errors.BufferTooSmall, BUFFER_TOO_SMALL),
        ((errors.Aborted, errors.Cancelled), CANCELLED),
        (errors.NotOwner, ACCESS_DENIED),
        ((errors.PeerDead, errors.Closed, errors.BrokenPipe), NOT_CONNECTED),
        (errors.RemoteError, UNKNOWN),
        (MemoryError, NO_RESOURCES),
        ((errors.WouldBlock, TimeoutError), TIMEOUT),
        ((TypeError, ValueError, OverflowError, errors.ForkedHandle), INVALID_ARG),
    ],
    UNKNOWN,
)

# What the operating system says of sockets.
ERRNOS = {
    errno.ENOENT: NOT_FOUND,
    errno.ENODEV: NOT_FOUND,
    errno.EACCES: ACCESS_DENIED,
    errno.EPERM: ACCESS_DENIED,
    errno.ENOMEM: NO_RESOURCES,
    errno.ENOBUFS: NO_RESOURCES,
    errno.EMFILE: NO_RESOURCES,
    errno.ENFILE: NO_RESOURCES,
    errno.EADDRNOTAVAIL: NO_RESOURCES,
    errno.EINVAL: INVALID_ARG,
    errno.EBADF: INVALID_ARG,
    errno.EAFNOSUPPORT: INVALID_ARG,
    errno.EPROTONOSUPPORT: INVALID_ARG,
    errno.EPROTOTYPE: INVALID_ARG,
    errno.EOPNOTSUPP: INVALID_ARG,
    errno.EDESTADDRREQ: NOT_CONNECTED,
    errno.EADDRINUSE: ALREADY_EXISTS,
    errno.EISCONN: ALREADY_EXISTS,
    errno.ENOTCONN: NOT_CONNECTED,
    errno.ECONNREFUSED: NOT_CONNECTED,
    errno.ECONNRESET: NOT_CONNECTED,
    errno.ECONNABORTED: NOT_CONNECTED,
    errno.EPIPE: NOT_CONNECTED,
    errno.ESHUTDOWN: NOT_CONNECTED,
    errno.EHOSTUNREACH: NOT_CONNECTED,
    errno.ENETUNREACH: NOT_CONNECTED,
    errno.EMSGSIZE: BUFFER_TOO_SMALL,
    errno.EAGAIN: TIMEOUT,
    errno.EINPROGRESS: TIMEOUT,
    errno.EALREADY: TIMEOUT,
    errno.ETIMEDOUT: TIMEOUT,
}


def failed(error: BaseException) -> RatIpcStatus:
    """The status of an exception, which becomes the reason of this thread's last failure."""
    status = _failures.status(error)
    if isinstance(error, OSError) and not isinstance(error, errors.ShmipcError) and error.errno is not None:
        return ERRNOS.get(error.errno, status)
    return status


def detail() -> str:
    """The reason of the calling thread's last failure; empty when nothing has failed in it."""
    return _failures.detail()


def whole(what: str, value: Any) -> int:
    """The value, if it is an int; raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    return int(value)


def seconds(timeout_ms: Any) -> float | None:
    """Milliseconds as a timeout of the core; raises TypeError."""
    number = whole("timeout_ms", timeout_ms)
    return None if number == RAT_INFINITE else in_seconds(number)


def check_flag(what: str, value: Any) -> bool:
    """The value, if it is a bool, or 0 or 1; raises TypeError."""
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(f"{what} must be a bool, not {value!r:.40}")
    return bool(value)


def check_name(what: str, name: Any) -> str:
    """The core's form of a name, which has no slash before it; raises TypeError."""
    if not isinstance(name, str):
        raise TypeError(f"the name of {what} must be a str, not {type(name).__name__}")
    return name.removeprefix("/")
