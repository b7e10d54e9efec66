"""Byte pipes: streams in shared memory."""

from typing import Any, Literal, Self

from shmipc import _native
from shmipc.base.errors import BrokenPipe, InvalidArgument, Timeout, WouldBlock
from shmipc.base.limits import check_count
from shmipc.transport.mailboxes import HasMembership
from shmipc.transport.sync_objects import SyncObject

CAPACITY = 1 << 16
MAX_CAPACITY = 1 << 30
ENDS = 128
MAX_ENDS = 1024
READ_BYTES = 1 << 16
PART = 1 << 18  # the core copies no more at once: SHM_PIPE_PART

Mode = Literal["r", "w"]
WHAT = {"r": _native.PIPE_READER, "w": _native.PIPE_WRITER}


class BytePipe(SyncObject):
    """One open end of a stream of bytes, for reading or for writing.

    Made with `pair` or `create`, found with `open`; an end that is pickled is opened again where it is unpickled, so
    keep yours until the other process has its own. Any number of processes may read and write; each byte is read by
    one.

    The stream ends when the last writer has closed its end or died, and what was written has been read; a later writer
    begins it anew. Before the first writer has come, and before the first reader has, one waits.

    Attributes:
        mode: "r" or "w".
        blocking: Does a read or write without a timeout wait? May be set.
    """

    KIND = _native.SYNC_PIPE
    NOUN = "pipe"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("use BytePipe.pair, BytePipe.create or BytePipe.open")

    @classmethod
    def create(
        cls,
        name: str | None = None,
        mode: Mode = "r",
        *,
        capacity: int = CAPACITY,
        ends: int = ENDS,
        system: HasMembership | None = None,
    ) -> Self:
        """Make a pipe, and open one end of it.

        Args:
            name: Under which others of the system find it, or None.
            mode: "r" to read, "w" to write.
            capacity: Bytes written and not yet read at most; rounded up to a power of two, at most 1 GiB.
            ends: Open at a time at most, 2 to 1024.
            system: Where; the current system by default.

        Raises:
            NameTaken: The name belongs to a living object.
            InvalidArgument, LimitExceeded: A number outside its limits, or another mode.
            OutOfMemory: Shared memory is exhausted.
        """
        what = check_mode(mode)
        check_count("capacity", capacity, 1, MAX_CAPACITY)
        check_count("ends", ends, 2, MAX_ENDS)
        pipe = cls.__new__(cls)
        pipe._create(name, system, entries=ends, nbytes=1 << (capacity - 1).bit_length())
        pipe._join(mode, what)
        return pipe

    @classmethod
    def pair(
        cls, *, capacity: int = CAPACITY, ends: int = ENDS, system: HasMembership | None = None
    ) -> tuple[Self, Self]:
        """Make a pipe without a name: (its reading end, its writing end)."""
        reader = cls.create(None, "r", capacity=capacity, ends=ends, system=system)
        return reader, reader.other("w")

    @classmethod
    def open(  # an end has a mode
        cls,
        name: str,
        mode: Mode = "r",
        *,
        timeout: float | None = 0.0,
        system: HasMembership | None = None,
    ) -> Self:
        """Open an end of the pipe of that name; arguments and errors as of `Event.open`, LimitExceeded."""
        what = check_mode(mode)
        pipe = super().open(name, timeout=timeout, system=system)
        pipe._join(mode, what)
        return pipe

    def other(self, mode: Mode) -> Self:
        """Open another end of the same pipe in this process."""
        what = check_mode(mode)
        pipe = type(self)._adopt(self.member, self.index, self.life)
        pipe._join(mode, what)
        return pipe

    def _join(self, mode: Mode, what: int) -> None:
        self.mode = mode
        self.blocking = True
        try:
            self.join_pipe(what)
        except BaseException:
            self.release_hold()
            raise

    def _state(self) -> tuple[Any, ...]:
        return (self.mode,)

    def _restore(self, *state: Any) -> None:
        if state:
            self._join(state[0], WHAT[state[0]])

    def _within(self, timeout: float | None) -> float | None:
        return 0.0 if timeout is None and not self.blocking else timeout

    def read(self, size: int = READ_BYTES, timeout: float | None = None) -> bytes:
        """Read what is there, at least one byte and at most ``size``; b"" at the end of the stream.

        Args:
            size: At least 1; more than the capacity, or 256 KiB, never comes at once.
            timeout: Seconds; None waits, unless ``blocking`` is false; 0 looks once.

        Raises:
            WouldBlock, Timeout: Nothing came in time.
            NotSupported: It is a writing end.
            Closed: It was closed in this process.
        """
        room = bytearray(min(check_count("size", size, 1, MAX_CAPACITY), self.nbytes, PART))
        return bytes(memoryview(room)[: self.readinto(room, timeout)])

    def readinto(self, buffer: Any, timeout: float | None = None) -> int:
        """Read into a writable buffer what is there and fits: how many bytes, 0 at the end; see `read`."""
        seconds = self._within(timeout)
        done = self.read_pipe(buffer, seconds)
        if done < 0:
            if seconds == 0:
                raise WouldBlock("the pipe is empty")
            raise Timeout(f"nothing came within {seconds} s: {self.describe()}")
        return done

    def write(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> int:
        """Write all of it, waiting for room; 4096 bytes or less are never mixed with those of another writer.

        Args:
            data: Bytes-like and contiguous.
            timeout: Seconds; None waits, unless ``blocking`` is false; 0 writes what there is room for.

        Returns:
            Bytes written: less than all when the time was up before.

        Raises:
            WouldBlock, Timeout: Nothing was written in time.
            BrokenPipe: Nobody has the pipe open for reading any more; ``written`` says how many were.
            NotSupported: It is a reading end.
            Closed: It was closed in this process; ``written`` as above. So has what a signal handler raises meanwhile.
        """
        seconds = self._within(timeout)
        done, state = self.write_pipe(data, seconds)
        if state < 0:
            raise BrokenPipe(f"nobody reads the pipe any more; {done} bytes were written", written=done)
        if state == 0 and done == 0:
            if seconds == 0:
                raise WouldBlock(f"the pipe has no room for {len(data)} bytes at once")
            raise Timeout(f"no room came within {seconds} s: {self.describe()}")
        return done

    @property
    def capacity(self) -> int:
        """Bytes written and not yet read at most."""
        return self.nbytes

    @property
    def reading(self) -> int:
        """Reading ends that are open."""
        return self.pipe_ends(_native.PIPE_READER)

    @property
    def writing(self) -> int:
        """Writing ends that are open."""
        return self.pipe_ends(_native.PIPE_WRITER)


def check_mode(mode: str) -> int:
    """What the core calls a mode; raises TypeError, InvalidArgument."""
    if not isinstance(mode, str):
        raise TypeError(f"mode must be 'r' or 'w', not {type(mode).__name__}")
    if mode not in WHAT:
        raise InvalidArgument(f"mode is {mode!r}; it is 'r' or 'w'")
    return WHAT[mode]
