"""Descriptors as a completion queue has them: its own duplicates, on which nothing ever blocks."""

import errno
import fcntl
import itertools
import os
import select
import stat
import threading
import weakref
from typing import Any

from shmipc import _native
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
        order: What tells it from all others of its queue.

    Attributes:
        watchers: Orders that wait for it.

    Raises:
        OSError: It is closed.
    """

    def __init__(self, number: int, writes: bool, order: Any) -> None:
        self.order = order
        self.watchers = 0
        self.events = select.EPOLLOUT if writes else select.EPOLLIN
        mode, access = os.fstat(number).st_mode, fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        if access == (os.O_RDONLY if writes else os.O_WRONLY):
            raise NotSupported(f"descriptor {number} is not for {'writing' if writes else 'reading'}")
        self.is_pipe = stat.S_ISFIFO(mode)
        self.is_socket = stat.S_ISSOCK(mode)
        self.is_told_by_inode = self.is_pipe or self.is_socket
        self.is_anonymous = stat.S_IFMT(mode) == 0
        self.is_always_ready = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        if self.is_pipe:
            flags = (os.O_WRONLY if writes else os.O_RDONLY) | os.O_NONBLOCK
            try:
                self.duplicate = _native.Duplicate(number, flags)
            except OSError as error:
                # nobody reads it any more, as the first write will say; or it was another user's, and is only passed on
                if error.errno not in (errno.ENXIO, errno.EACCES, errno.EPERM):
                    raise
                self.is_pipe = False
                self.duplicate = _native.Duplicate(number)
        else:
            self.duplicate = _native.Duplicate(number)
        self.number = self.duplicate.number

    def is_of(self, number: int) -> bool:
        """Is the descriptor still the same open file? Its number may have been closed and come again: a pipe or socket
        is then told by its inode, all else by the kernel alone. Where that does not say, a file is told by its inode,
        and of what has none to itself (an eventfd) each submission has a duplicate.
        """
        if self.is_told_by_inode:
            return True
        same = _native.same_file(self.number, number)
        return not self.is_anonymous if same is None else same

    def check(self) -> None:
        """Raise WouldBlock unless poll says that it can be done."""
        asked = select.poll()
        asked.register(self.number, self.events)
        if not self.is_always_ready and not asked.poll(0):
            raise WouldBlock("the descriptor is not ready")

    def read(self, size: int) -> bytes:
        """What is there, b"" at the end; raises BlockingIOError, OSError."""
        if self.is_socket:
            return self.duplicate.receive(size)
        if not self.is_pipe:
            self.check()
        return os.read(self.number, size)

    def write(self, content: memoryview) -> int:
        """Bytes that were written, at least one; raises BlockingIOError, OSError."""
        if self.is_socket:
            return self.duplicate.send(content)
        if not self.is_pipe and not self.is_always_ready:
            self.check()
            content = content[:PART_BYTES]
        return os.write(self.number, content)

    def close(self) -> None:
        """Idempotent."""
        self.duplicate.close()


class Channels:
    """The channels of what is outstanding in one queue, each for all that is for one descriptor.

    It keeps none of them: each is closed when no submission is for it and nobody waits for it any more, however that
    came about.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.serials = itertools.count()
        self.by_key: weakref.WeakValueDictionary[Any, Channel] = weakref.WeakValueDictionary()

    def open(self, key: tuple[Any, ...], number: int, writes: bool) -> Channel:
        """The channel of a descriptor: that of the submissions before, while it is the same open file."""
        with self.lock:
            channel = self.by_key.get(key)
            if channel is None or not channel.is_of(number):
                if channel is not None:  # it goes on under a key that nobody looks for
                    self.by_key[channel.order] = channel
                channel = self.by_key[key] = Channel(number, writes, (*key, next(self.serials)))
        return channel
