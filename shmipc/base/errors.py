"""Every exception of shmipc, each with what a caller acts on, all picklable with their attributes.

They derive from `ShmipcError` and, where one fits, from the built-in exception that a program may catch already.
Wrong Python types are plain ``TypeError``.
"""

import queue
from collections.abc import Callable
from typing import Any

HEAP_TYPE = 1 << 9  # flag of a class that a class statement made


def text_of(error: BaseException) -> str:
    """The text of an exception, whatever its class does to be asked for it."""
    try:
        return str(error)
    except Exception:
        return f"<{type(error).__name__} whose text cannot be had>"


def bare(kind: type[BaseException], args: tuple[Any, ...]) -> Any:
    """An exception with these arguments, made without its constructor and without a ``__new__`` of its own."""
    made_by: Any = kind
    while made_by.__flags__ & HEAP_TYPE:
        made_by = made_by.__base__
    error = made_by.__new__(kind, *args)
    error.args = args
    return error


def rebuild(cls: type["ShmipcError"], args: tuple[Any, ...], state: dict[str, Any]) -> "ShmipcError":
    """Make an error again from its class, arguments and attributes, without calling its constructor."""
    error: ShmipcError = bare(cls, args)
    error.__dict__.update(state)
    return error


class ShmipcError(Exception):
    """Whatever shmipc raises."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        state = self.__dict__.copy()
        for key in [key for key, value in state.items() if key == "message" and not picklable(value)]:
            state[key] = None
        return rebuild, (type(self), self.args, state)


def picklable(value: object) -> bool:
    """Can plain pickle carry this value? For what an error carries along, which must not stop the error."""
    import pickle

    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True


class WouldBlock(ShmipcError, BlockingIOError):
    """It cannot be done at once, and waiting was not allowed."""


class MailboxFull(WouldBlock, queue.Full):
    """The mailbox holds as many undelivered messages as its capacity.

    Attributes:
        message: The body that was not sent.
    """

    def __init__(self, text: str = "the mailbox is full", *, message: Any = None) -> None:
        super().__init__(text)
        self.message = message


class MailboxEmpty(WouldBlock, queue.Empty):
    """No message that matches is there."""


class Timeout(ShmipcError, TimeoutError):
    """The deadline passed; never early.

    Attributes:
        message: For a send, the body that was not sent; else None.
    """

    def __init__(self, text: str = "timed out", *, message: Any = None) -> None:
        super().__init__(text)
        self.message = message


class Starved(ShmipcError):
    """A filtered receive on a full mailbox in which nothing matches: nobody can ever make room.

    Attributes:
        depth: Messages undelivered.
        filter: What was asked for.
    """

    def __init__(self, text: str = "starved", *, depth: int = 0, filter: Any = None) -> None:
        super().__init__(text)
        self.depth = depth
        self.filter = filter


class PeerDead(ShmipcError, ConnectionError):
    """The process that was to answer or to receive has ended.

    Attributes:
        reason: returned, exception, exited, signal, killed, orphaned or unknown.
        exitcode: Its exit code, None when it was ended by a signal or nobody knows.
        signal: The signal that ended it, else None.
        served: Had it taken the request? None when nobody knows.
        service: What it ran for the request, a method or function, cut to 31 bytes; None when it has not said.
        hint: What else may explain the end, so that memory ran out; None: nothing.
    """

    def __init__(
        self,
        text: str = "the peer is dead",
        *,
        reason: str = "unknown",
        exitcode: int | None = None,
        signal: int | None = None,
        served: bool | None = None,
        service: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.exitcode = exitcode
        self.signal = signal
        self.served = served
        self.service = service
        self.hint = hint


class Aborted(ShmipcError):
    """This thread was aborted, or the call that it serves or answers is closed: aborted, timed out, answered before."""


class Cancelled(ShmipcError):
    """The submission to a completion queue was cancelled, or its queue closed, before it was done."""


class Deadlock(ShmipcError, RuntimeError):
    """Calls wait for each other in a circle.

    Attributes:
        cycle: The members of the circle, in order.
    """

    def __init__(self, text: str = "deadlock", *, cycle: tuple[Any, ...] = ()) -> None:
        super().__init__(text)
        self.cycle = cycle


class Closed(ShmipcError, ValueError):
    """The object or its system is closed."""


class NoPort(Closed):
    """The port to receive from is gone, or is another actor's: it was deleted, or has migrated."""


class Unreachable(ShmipcError, ConnectionError):
    """Nobody is there to receive what is sent: the port is gone with its owner or was deleted, the group is empty."""


class ForkedHandle(ShmipcError):
    """The handle belongs to the parent of this forked process."""


class Corrupted(ShmipcError):
    """Shared memory holds values that cannot be."""


class LayoutMismatch(ShmipcError):
    """The other side has another shared layout or another Python minor version."""


class NotFound(ShmipcError, FileNotFoundError):
    """No such system, name or object."""


class NameTaken(ShmipcError, FileExistsError):
    """The name belongs to a living owner."""


class AccessDenied(ShmipcError, PermissionError):
    """The operating system refused, or the file is somebody else's."""


class InvalidArgument(ShmipcError, ValueError):
    """A value that cannot be; the message says value and limit."""


class TooLarge(InvalidArgument):
    """The body is larger than the limit; nothing was queued."""


class LimitExceeded(InvalidArgument):
    """A number above its limit (`shmipc.LIMITS`), or a table of the system that is full."""


class BufferTooSmall(ShmipcError):
    """The message does not fit the buffer; it was kept.

    Attributes:
        needed: Bytes the buffer must have.
    """

    def __init__(self, text: str = "the buffer is too small", *, needed: int = 0) -> None:
        super().__init__(text)
        self.needed = needed


class OutOfMemory(ShmipcError, MemoryError):
    """Shared memory is exhausted.

    Attributes:
        needed: Bytes asked for, 0 when unknown.
        free: Bytes that are left, 0 when unknown.
    """

    def __init__(self, text: str = "shared memory is exhausted", *, needed: int = 0, free: int = 0) -> None:
        super().__init__(text)
        self.needed = needed
        self.free = free


class NoSuchMethod(ShmipcError, AttributeError):
    """The actor's class has no public method of that name."""


class NotSupported(ShmipcError, TypeError):
    """The operation is not one this object or this platform has."""


class NotOwner(ShmipcError, RuntimeError):
    """Only who holds a lock may give it back."""


class BrokenPipe(ShmipcError, BrokenPipeError):
    """Nobody has the reading end of the pipe open any more.

    Attributes:
        written: Bytes of the call that are in the pipe.
    """

    def __init__(self, text: str = "the pipe has no reader", *, written: int = 0) -> None:
        super().__init__(text)
        self.written = written


class BrokenPool(ShmipcError, RuntimeError):
    """Three workers in a row failed to start; the pool takes no more work."""


class TooManyRestarts(ShmipcError, RuntimeError):
    """A supervisor has given up: its children ended more often than it may start them again.

    Attributes:
        restarts: How many were allowed, and made.
        period: Within how many seconds.
    """

    def __init__(self, text: str = "too many restarts", *, restarts: int = 0, period: float = 0.0) -> None:
        super().__init__(text)
        self.restarts = restarts
        self.period = period


class RemoteError(ShmipcError):
    """Stands for an exception of another process that cannot be made again here.

    Attributes:
        type_name: Full name of its class.
        traceback: Its traceback as text.
    """

    def __init__(self, text: str = "", *, type_name: str = "", traceback: str = "") -> None:
        super().__init__(text)
        self.type_name = type_name
        self.traceback = traceback
