"""Exceptions as statuses, for interfaces that raise nothing."""

import threading
from enum import IntEnum
from typing import Generic, TypeVar

from shmipc.base.errors import text_of

S = TypeVar("S", bound=IntEnum)


class Failures(Generic[S]):
    """Turns exceptions into the statuses of one interface, and remembers the last one of each thread.

    Args:
        table: Exception types and their statuses; the first that fits counts.
        other: The status of every other exception.
    """

    def __init__(self, table: list[tuple[type[BaseException] | tuple[type[BaseException], ...], S]], other: S) -> None:
        self.table = table
        self.other = other
        self.last = threading.local()

    def status(self, error: BaseException) -> S:
        """The status of an exception, which becomes the reason of this thread's last failure."""
        self.last.text = f"{type(error).__name__}: {text_of(error)}"
        return next((status for types, status in self.table if isinstance(error, types)), self.other)

    def detail(self) -> str:
        """The reason of the calling thread's last failure; empty when nothing has failed in it."""
        text: str = getattr(self.last, "text", "")
        return text
