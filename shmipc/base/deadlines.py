"""Timeouts and deadlines: seconds, one absolute monotonic deadline for an operation, never early."""

import math
import time
from collections.abc import Callable
from typing import TypeVar

from shmipc.base.errors import InvalidArgument, NotFound, Timeout

T = TypeVar("T")


def check_timeout(timeout: float | None) -> float | None:
    """The timeout in seconds; None waits, 0 polls.

    Raises:
        TypeError: Neither None nor a number.
        InvalidArgument: Negative or NaN.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not hasattr(timeout, "__float__"):
        raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}")
    try:
        seconds = float(timeout)
    except OverflowError:  # an int that no float can hold
        seconds = math.inf if timeout > 0 else -math.inf
    if math.isnan(seconds) or seconds < 0:
        raise InvalidArgument(f"timeout is {timeout!r}, the least is 0; None waits for ever")
    return None if math.isinf(seconds) else seconds


def in_seconds(count: int, per_second: int = 1000) -> float | None:
    """A timeout in a unit of its own; negative: None. What no float can hold is for ever either way."""
    return None if count < 0 else min(count, 1 << 62) / per_second


class Deadline:
    """A point in monotonic time, or none.

    Args:
        timeout: Seconds from now; None: never.
    """

    __slots__ = ("at",)

    def __init__(self, timeout: float | None) -> None:
        seconds = check_timeout(timeout)
        self.at = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds that are left, at least 0; None: no limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def passed(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at

    def pause(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until the deadline if that is earlier."""
        left = self.left()
        time.sleep(seconds if left is None else min(seconds, left))

    def check(self, what: str) -> None:
        """Raise Timeout, saying what was waited for, when the deadline has passed."""
        if self.passed():
            raise Timeout(f"timed out waiting for {what}")


def poll(find: Callable[[], T], timeout: float | None) -> T:
    """Call ``find`` until it does not raise NotFound, with growing pauses, for ``timeout`` seconds at most."""
    deadline = Deadline(timeout)
    pause = 0.0005
    while True:
        try:
            return find()
        except NotFound:
            if deadline.passed():
                raise
        deadline.pause(pause)
        pause = min(pause * 2, 0.05)
