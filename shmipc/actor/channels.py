"""Descriptors as a completion queue has them: its own duplicates, on which nothing ever blocks."""

import errno
import fcntl
import os
import select
import socket
import stat
import threading
from typing import Any

from shmipc.base.errors import InvalidArgument, NotSupported, WouldBlock

PART_BYTES = 4096  # written at once to what can neither be told apart nor kept from blocking
MAX_READ = 1 << 30


def number_of(file: Any) -> int:
    """The descriptor of an int or of what has ``fileno()``; raises TypeError, InvalidArgument."""
    if isinstance(file, bool) or not (isinstance(file, int) or hasattr(file, "fileno")):
        raise TypeError(f"a BytePipe, a socket or another descriptor is needed, not {type(file).__name__}")
    number: int = file if isinstance(file, int) else file.fileno()
    if not 0 <= number < 1 << 30:
        raise InvalidArgument(f"descriptor {number} is none")
    return number


class Channel:
    """A duplicate of a descriptor, closed when nobody uses it any more.

    Its owner may close his own at any time. Of a pipe it is a description of its own, so that it can be non-blocking
    while the owner's is not; a socket is asked not to block at each call.

    Args:
        number: The descriptor.
        writes: Is it to be written to? Else it is read, or waited for.
        key: What tells it from others.

    Attributes:
        users: Submissions that are for it.

    Raises:
        OSError: It is closed.
    """

    def __init__(self, number: int, writes: bool, key: Any) -> None:
        self.number = -1
        self.key = key
        self.users = 0
        self.events = select.EPOLLOUT if writes else select.EPOLLIN
        mode, access = os.fstat(number).st_mode, fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        if access == (os.O_RDONLY if writes else os.O_WRONLY):
            raise NotSupported(f"descriptor {number} is not for {'writing' if writes else 'reading'}")
        self.socket: socket.socket | None = None
        self.is_pipe = stat.S_ISFIFO(mode)
        self.is_always_ready = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        if stat.S_ISSOCK(mode):
            self.socket = socket.socket(fileno=os.dup(number))
            self.number = self.socket.fileno()
        elif self.is_pipe:
            flags = (os.O_WRONLY if writes else os.O_RDONLY) | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                self.number = os.open(f"/proc/self/fd/{number}", flags)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                self.is_pipe = False  # nobody reads it any more, as the first write will say
                self.number = os.dup(number)
        else:
            self.number = os.dup(number)

    def check(self) -> None:
        """Raise WouldBlock unless poll says that it can be done."""
        asked = select.poll()
        asked.register(self.number, self.events)
        if not self.is_always_ready and not asked.poll(0):
            raise WouldBlock("the descriptor is not ready")

    def read(self, size: int) -> bytes:
        """What is there, b"" at the end; raises BlockingIOError, OSError."""
        if self.socket is not None:
            return self.socket.recv(size, socket.MSG_DONTWAIT)
        if not self.is_pipe:
            self.check()
        return os.read(self.number, size)

    def write(self, content: memoryview) -> int:
        """Bytes that were written, at least one; raises BlockingIOError, OSError."""
        if self.socket is not None:
            return self.socket.send(content, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if not self.is_pipe and not self.is_always_ready:
            self.check()
            content = content[:PART_BYTES]
        return os.write(self.number, content)

    def close(self) -> None:
        """Idempotent."""
        number, self.number = self.number, -1
        if self.socket is not None:
            self.socket.close()
        elif number >= 0:
            os.close(number)

    def __del__(self) -> None:
        if getattr(self, "number", -1) >= 0:
            self.close()


class Channels:
    """The channels of what is outstanding in one queue, each for all that is for one descriptor."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_key: dict[Any, Channel] = {}

    def lease(self, key: Any, number: int, writes: bool) -> Channel:
        """The channel of a descriptor, for one submission more."""
        with self.lock:
            channel = self.by_key.get(key)
            if channel is None:
                channel = self.by_key[key] = Channel(number, writes, key)
            channel.users += 1
        return channel

    def release(self, channel: Channel) -> None:
        """One submission less; it is closed when nobody waits for it any more either."""
        with self.lock:
            channel.users -= 1
            if channel.users == 0:
                del self.by_key[channel.key]
