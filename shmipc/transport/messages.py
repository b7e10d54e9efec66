"""Messages: their kinds, their wildcards, and the notice of an end."""

from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

from shmipc import _native
from shmipc.base.errors import InvalidArgument
from shmipc.base.limits import LIMITS

Message = _native.Message


class Kind(IntEnum):
    """What a message is; EXIT and NOTIFY cannot be sent, but see `notify`."""

    CAST = 0
    CALL = 1
    REPLY = 2
    TIMER = 3
    EXIT = 4
    NOTIFY = 5


class Sign:
    """A value that is only itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str:
        return self.name


ANY: Final[int] = _native.ANY  # sender, kind or tag of a receive: no condition
GENERATE: Final = Sign("GENERATE")  # tag of a send: make one that is unique in the system

GENERATED = 1 << 60  # set in a generated tag, and in no other


class Match(NamedTuple):
    """What `receive_matching` asks for: a sender (Ref), a kind and a tag, each of them ANY for no condition."""

    sender: Any = ANY
    kind: int = ANY
    tag: int | None = ANY


@dataclass(frozen=True)
class ExitNotice:
    """The end of a process that was watched; the body of a message of kind EXIT.

    Attributes:
        ref: Who ended.
        monitor: Number of the monitor that it answers; None for a link.
        reason: returned, exception, exited, signal, killed, orphaned or unknown.
        exitcode: Exit code, None when a signal ended it or nobody knows.
        signal: The signal that ended it, else None.
        traceback: Text of the exception that ended it, where known.
        undelivered: Messages that it had accepted and not received.
        hint: What else may explain the end, so that memory ran out; None: nothing.
    """

    ref: Any
    monitor: int | None
    reason: str
    exitcode: int | None
    signal: int | None
    traceback: str | None
    undelivered: int
    hint: str | None = None


def check_tag(tag: int | None) -> int:
    """The core's form of a user's tag: 1 to 2**60 - 1, or 0 for none.

    Raises:
        TypeError: Neither None nor an int.
        InvalidArgument: Outside the range.
    """
    if tag is None:
        return 0
    if isinstance(tag, bool) or not isinstance(tag, int):
        raise TypeError(f"tag must be an int or None, not {type(tag).__name__}")
    if not 1 <= tag <= LIMITS.tag:
        raise InvalidArgument(f"tag is {tag}; a user's tag is 1 to 2**60 - 1")
    return tag


def is_any(value: object) -> bool:
    """Is it the wildcard? Another number is none of the things that are received by."""
    return isinstance(value, int) and not isinstance(value, bool) and value == ANY


def check_filter(kind: int, tag: int | None) -> tuple[int, int]:
    """The core's form of the kind and the tag that a receive asks for.

    Raises:
        TypeError: No int.
        InvalidArgument: No kind; a tag that no message can have.
    """
    if isinstance(kind, bool) or not isinstance(kind, int):
        raise TypeError(f"kind must be a Kind or ANY, not {type(kind).__name__}")
    if kind != ANY and not Kind.CAST <= kind <= Kind.NOTIFY:
        raise InvalidArgument(f"kind is {kind}; it must be a Kind, 0 to {int(Kind.NOTIFY)}, or ANY")
    if tag is None:
        return kind, 0
    if isinstance(tag, bool) or not isinstance(tag, int):
        raise TypeError(f"tag must be an int, None or ANY, not {type(tag).__name__}")
    if tag != ANY and not 1 <= tag < 2 * GENERATED:
        raise InvalidArgument(f"tag is {tag}; it must be 1 to 2**61 - 1, None or ANY")
    return kind, tag


def carry(error: BaseException, taken: list[Message]) -> None:
    """Have what a signal handler has raised carry the message that the receive had taken, as its ``message``.

    One that it carries from a receive within stays.
    """
    if taken and taken[0].flags == _native.RAW:
        with suppress(Exception):  # its class may not let it
            if not isinstance(getattr(error, "message", None), Message):
                BaseException.__setattr__(error, "message", taken[0])
