"""Descriptors that this process keeps open for long.

A program may close every descriptor it has, as daemons do, and open its own in their place. So a number alone says
nothing: before one is written to, read, passed on or closed, it is asked whether it is still the same file.

Source: docs/explanation/failure-model.md, "Descriptors".
"""

import os
import stat
from socket import socket as RawSocket


def file_of(number: int) -> tuple[int, int, str]:
    """What tells an open file from others: device, inode, and of one that has no type its kind; OSError when closed.

    Before Linux 6.9 all pidfds share one inode: there a pidfd that the program opened passes for another pidfd.
    """
    found = os.fstat(number)
    kind = os.readlink(f"/proc/self/fd/{number}") if stat.S_IFMT(found.st_mode) == 0 else ""
    return found.st_dev, found.st_ino, kind


class Descriptor:
    """A descriptor of our own, until it is closed, by us or behind our back."""

    __slots__ = ("file", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.file = file_of(number)

    def is_open(self) -> bool:
        """Is the number still ours? One system call, or two."""
        try:
            return self.number >= 0 and file_of(self.number) == self.file
        except OSError:
            return False

    def write(self, content: bytes) -> None:
        """Write, if it is ours."""
        if self.is_open():
            os.write(self.number, content)

    def close(self) -> None:
        """Close it, if it is ours. Idempotent."""
        if self.is_open():
            os.close(self.number)
        self.number = -1


class Socket:
    """A socket that is kept: its number is not closed when it is another file's by then."""

    __slots__ = ("descriptor", "socket")

    def __init__(self, kept: RawSocket) -> None:
        self.socket = kept
        self.descriptor = Descriptor(kept.fileno())

    def is_open(self) -> bool:
        """Is it still ours?"""
        return self.descriptor.is_open()

    def close(self) -> None:
        """Close it, or leave its number alone. Idempotent."""
        if self.is_open():
            self.socket.close()
        else:
            self.socket.detach()
        self.descriptor.number = -1
