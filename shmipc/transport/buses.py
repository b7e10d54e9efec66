"""Buses: frames that are written once and read by many processes without a copy."""

import ast
import functools
import operator
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from shmipc import _native
from shmipc.base.closing import Closing
from shmipc.base.deadlines import Deadline, check_timeout, poll
from shmipc.base.errors import Corrupted, InvalidArgument, NotFound, TooLarge, WouldBlock
from shmipc.base.limits import LIMITS, check_count
from shmipc.memory import membership, segments
from shmipc.transport.mailboxes import HasMembership, membership_of

Array = np.ndarray[Any, np.dtype[Any]]


class BusReader(Closing, _native.BusReader):
    """One process's place in a bus; made by `Bus.subscribe`.

    ``receive_into(buffer, timeout=None) -> int`` is the binding's own method: the next frame's bytes into a writable,
    contiguous buffer; `BufferTooSmall` with ``needed`` keeps the frame. Threads may share a reader: each frame goes to
    one of them.

    Source: native/transport/bus.c.
    """

    def receive(self, timeout: float | None = None) -> Array:
        """The next frame: a read-only array with the shape and dtype it was published with.

        It stays as it is while it, or a view of it, is held.

        Args:
            timeout: Seconds; None waits, 0 polls.

        Raises:
            MailboxEmpty: ``timeout=0`` and no frame is there.
            Timeout: None came in time.
            Closed: The reader, the bus or the system is closed.
            Corrupted: Shared memory holds what cannot be a frame.
        """
        block, head_bytes, len_bytes = self.take(timeout)
        dtype, shape = head_of(bytes(memoryview(block)[:head_bytes]), len_bytes)
        try:
            return np.ndarray(shape, dtype, buffer=cast(memoryview, block), offset=head_bytes)
        except (ValueError, TypeError, OverflowError, MemoryError) as error:  # what lengths can no array have?
            raise Corrupted(f"a frame of shape {shape}: {error}") from None

    def close(self) -> None:
        """Leave the bus; a second close does nothing. Frames that are held stay valid."""
        self.leave()

    def __repr__(self) -> str:
        return f"<BusReader{', closed' if self.closed else ''}: missed {self.missed}, skipped {self.skipped}>"


class Bus(Closing, _native.BusView):
    """A bus: made with `create`, found with `open`, passed on by pickling.

    Each reader gets, in order and once, what is published after it subscribed. The last ``frames`` frames are kept;
    publishing to a full bus ends the oldest, and a reader that had not read it is told by ``missed``, unless it has
    patience: then it is waited for. It lives until the last process that has it open closes it or dies.

    Timeouts are seconds: None waits, 0 polls (`MailboxFull`), a positive one ends in `Timeout`.

    Source: native/transport/bus.c; bytes in native/memory/layout.h.
    """

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        frames: int = LIMITS.frames,
        frame_bytes: int = LIMITS.body_bytes,
        readers: int = LIMITS.readers,
        consume_after: int | None = None,
        max_age: float | None = None,
        system: HasMembership | None = None,
    ) -> Self:
        """Make a bus.

        Args:
            name: Under which others of the system find it, or None.
            frames: Frames kept, 1 to 4096.
            frame_bytes: Bytes of one frame at most. Memory is taken when a frame is published, as much as it needs.
            readers: Readers at a time, 1 to 1024.
            consume_after: A frame is gone when so many readers have received it; None: never.
            max_age: A frame is gone after so many seconds; None: never.
            system: Where; the current system by default.

        Raises:
            NameTaken: The name belongs to a living object.
            InvalidArgument, LimitExceeded: A number outside its limits, or a name with other characters.
            OutOfMemory: Shared memory is exhausted.
        """
        if name is not None:
            segments.check_name("bus name", name)
        check_count("frames", frames, 1, LIMITS.max_frames)
        check_count("readers", readers, 1, LIMITS.max_readers)
        check_count("frame_bytes", frame_bytes, 1, LIMITS.body_bytes)
        if consume_after is not None:
            check_count("consume_after", consume_after, 1, LIMITS.max_readers)
        age = check_timeout(max_age)
        if age is not None and not 0 < age <= 1e9:
            raise InvalidArgument(f"max_age is {max_age} s; it must be more than 0 and at most 1e9")
        member = membership_of(system).member
        age_ns = 0 if age is None else max(1, round(age * 1e9))
        bus: Self = member.make_bus(frames, readers, frame_bytes, consume_after or 0, age_ns, cls=cls)
        if name is not None:
            try:
                member.serve_name(name, _native.NAME_BUS, bus.index, bus.life)
            except BaseException:
                bus.release()
                raise
        return bus

    @classmethod
    def open(cls, name: str, *, timeout: float | None = 0.0, system: HasMembership | None = None) -> Self:
        """Open the bus of that name.

        Args:
            timeout: Seconds to wait for it to appear, and for a process that was stopped while it opened it; 0 looks
                once.

        Raises:
            NotFound: There is none. Timeout: A process that was stopped is in the midst of opening it.
        """
        segments.check_name("bus name", name)
        member = membership_of(system).member
        deadline = Deadline(timeout or None)

        def find() -> Any:
            kind, index, life = member.lookup_name(name)
            if kind != _native.NAME_BUS:
                raise NotFound(f"{name!r} names something else, not a bus")
            return member.open_bus(index, life, cls=cls, timeout=deadline.left())

        found: Self = poll(find, timeout)
        return found

    def publish(self, x: npt.ArrayLike | bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        """Publish a copy of an array, or of bytes, which arrive as an array of uint8.

        Args:
            x: What `numpy.asarray` takes, without Python objects in its dtype; or bytes-like.
            timeout: Seconds to wait for readers with patience, and for another who publishes.

        Raises:
            MailboxFull: ``timeout=0``, and it would have to wait; with ``message``.
            Timeout: It waited so long; with ``message``. Nothing was published, and every frame is where it was, as
                after every other error.
            TooLarge: More than ``frame_bytes``.
            OutOfMemory: Shared memory is exhausted.
            Closed: The bus was destroyed, or is closed here.
        """
        array: Array
        if isinstance(x, (bytes, bytearray, memoryview)):
            array = np.frombuffer(x, np.uint8)
        elif isinstance(x, np.ma.MaskedArray):
            raise TypeError("a masked array cannot be published; publish its data and its mask")
        else:
            array = np.asarray(x)
        check_timeout(timeout)
        frame, block, head_bytes = self._new(array.shape, array.dtype)
        frame[...] = array
        self.publish_block(block, head_bytes, head_bytes + array.nbytes, timeout, x)

    def begin(
        self,
        shape: int | tuple[int, ...] | None = None,
        dtype: npt.DTypeLike = np.uint8,
        *,
        timeout: float | None = None,
    ) -> "Draft":
        """A frame to fill in place: ``with bus.begin((480, 640)) as frame: frame[...] = ...``.

        It is published when the block ends, and dropped when an exception leaves it; nothing is copied. What is
        written to it afterwards would be seen by readers: do not.

        Args:
            shape: Lengths of the axes; None: one axis of ``frame_bytes`` elements of one byte.
            dtype: Anything without Python objects in it.
            timeout: As of `publish`, at the end of the block, which raises what `publish` does.
        """
        check_timeout(timeout)
        if shape is None:
            shape = self.frame_bytes // max(1, np.dtype(dtype).itemsize)
        lengths = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        if any(isinstance(n, (bool, str, bytes)) for n in lengths):
            raise TypeError(f"shape is {shape!r}; lengths are whole numbers")
        lengths = tuple(operator.index(n) for n in lengths)
        return Draft(self, lengths, np.dtype(dtype), timeout)

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, _native.Lease, int]:
        """A writable frame, its block, and the bytes of its head."""
        if self.closed:
            self.readers  # noqa: B018  raises ForkedHandle, Closed
        if dtype.hasobject:
            raise TypeError(f"dtype {dtype} holds Python objects, which cannot be shared")
        while dtype.subdtype is not None:  # numpy makes its lengths the array's last
            dtype, inner = dtype.subdtype
            shape += inner
        if any(length < 0 for length in shape):
            raise InvalidArgument(f"shape is {shape}; the least length is 0")
        head = make_head(dtype, shape)
        nbytes = dtype.itemsize
        for length in shape:
            nbytes *= length
        if nbytes > self.frame_bytes:
            raise TooLarge(f"the frame is {nbytes} bytes; the limit of this bus is {self.frame_bytes}")
        block = self.member.allocate(len(head) + nbytes)
        memoryview(block)[: len(head)] = head
        frame: Array = np.ndarray(shape, dtype, buffer=cast(memoryview, block), offset=len(head))
        return frame, block, len(head)

    def subscribe(self, *, patience: float = 0.0) -> BusReader:
        """Become a reader of what is published from now on.

        Args:
            patience: Seconds that publishing waits for this reader, while it does not move, before a frame that it has
                not read is ended; at most 1e6. 0: it is not waited for.

        Raises:
            LimitExceeded: The bus has as many readers as it may.
            Closed: The bus was destroyed, or is closed here.
        """
        reader: BusReader = self.join(patience, cls=BusReader)
        return reader

    def destroy(self) -> None:
        """End the bus for everybody: publishing to it, and opening it, raises Closed and NotFound.

        Raises:
            WouldBlock: It has readers.
            Closed: It was destroyed before.
        """
        if not self.end():
            raise WouldBlock(f"the bus has {self.readers} readers; it is destroyed when they have left")

    @property
    def name(self) -> str | None:
        """The name it has in its system, None when it has none."""
        return self.member.name_of(_native.NAME_BUS, self.index, self.life)

    def close(self) -> None:
        """Close this process's hold, and its readers; a second close does nothing. Frames that are held stay valid."""
        self.release()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        found = membership.of_member(self.member)
        name = found.name if found is not None else ""
        return reopen, (type(self), name, self.index, self.life)

    def __repr__(self) -> str:
        if self.closed:
            return "<Bus, closed>"
        if self.member.forked:
            return "<Bus of the process that forked this one>"
        return f"<Bus {self.name or self.index}, {self.frames} frames, {self.readers} readers>"


class Draft:
    """A frame that is being filled; see `Bus.begin`. A context manager, for one use."""

    def __init__(self, bus: Bus, shape: tuple[int, ...], dtype: np.dtype[Any], timeout: float | None) -> None:
        self._bus = bus
        self._timeout = timeout
        self._used = False
        self._frame, self._block, self._head_bytes = bus._new(shape, dtype)

    def __enter__(self) -> Array:
        if self._used:
            raise InvalidArgument("this frame was begun before; bus.begin() makes another")
        self._used = True
        return self._frame

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        frame, block = self._frame, self._block
        del self._frame, self._block
        if kind is None:
            self._bus.publish_block(block, self._head_bytes, self._head_bytes + frame.nbytes, self._timeout, frame)


def reopen(cls: type[Bus], system: str, index: int, life: int) -> Bus:
    """Open in this process a bus that another process pickled; raises NotFound, Closed."""
    found = membership.find(system)
    found.check()
    bus: Bus = found.member.open_bus(index, life, cls=cls)
    return bus


# --- heads -----------------------------------------------------------------------------------------------------

# Before the bytes of a frame: head bytes, axes, bytes of the dtype's text; lengths of the axes; the text; zeros up to a
# multiple of 64.
FIXED = struct.Struct("<III")
ALIGNMENT = 64
MAX_AXES = 64
NOT_A_HEAD = (
    *(ValueError, TypeError, SyntaxError, struct.error, LookupError, AttributeError, ArithmeticError),
    *(RecursionError, MemoryError),
)


def describe(dtype: np.dtype[Any]) -> Any:
    """A dtype as a literal: its name, or of a structure what each field is and where.

    numpy's own description has none for fields that overlap or are out of order, and forgets that they are aligned.

    What numpy does not compare, the metadata, stays behind.
    """
    if dtype.subdtype is not None:
        return describe(dtype.subdtype[0]), dtype.subdtype[1]
    fields: Any = dtype.fields  # whose keys are literals to some type checkers
    if dtype.names is None or fields is None:
        return dtype.str
    formats, offsets, titles = [], [], []
    for name in dtype.names:
        kind, offset, *title = fields[name]
        formats.append(describe(kind))
        offsets.append(offset)
        titles.append(title[0] if title else None)
    found: dict[str, Any] = {
        "names": list(dtype.names),
        "formats": formats,
        "offsets": offsets,
        "itemsize": dtype.itemsize,
    }
    if any(title is not None for title in titles):
        found["titles"] = titles
    if dtype.isalignedstruct:
        found["aligned"] = True
    return found


def described(text: Any) -> np.dtype[Any]:
    """The other side of `describe`; raises what numpy raises of what is no dtype."""
    if isinstance(text, dict):
        found: Any = {**text, "formats": [described(kind) for kind in text["formats"]]}
        dtype: np.dtype[Any] = np.dtype(found)
        return dtype
    if isinstance(text, tuple):
        kind, shape = text
        return np.dtype((described(kind), shape))
    if not isinstance(text, str):
        raise ValueError("its dtype is none")
    return np.dtype(text)


@functools.lru_cache(maxsize=64)
def make_head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The head of a frame."""
    text = repr(describe(dtype)).encode()
    lengths = struct.pack(f"<{len(shape)}Q", *shape)
    size = FIXED.size + len(lengths) + len(text)
    size += -size % ALIGNMENT
    return (FIXED.pack(size, len(shape), len(text)) + lengths + text).ljust(size, b"\0")


@functools.lru_cache(maxsize=64)
def read_head(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Dtype, shape and number of bytes that a head says; Corrupted when it is none."""
    try:
        size, axes, text_bytes = FIXED.unpack_from(head)
        start = FIXED.size + 8 * axes
        if size != len(head) or axes > MAX_AXES or start + text_bytes > size:
            raise ValueError("its lengths do not fit together")
        shape = struct.unpack_from(f"<{axes}Q", head, FIXED.size)
        dtype = described(ast.literal_eval(head[start : start + text_bytes].decode()))
        if dtype.hasobject:
            raise ValueError("its dtype holds Python objects")
    except NOT_A_HEAD as error:
        raise Corrupted(f"a frame whose head of {len(head)} bytes is none: {error}") from None
    nbytes = dtype.itemsize
    for length in shape:
        nbytes *= length
    return dtype, shape, nbytes


def head_of(head: bytes, len_bytes: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Dtype and shape of a frame of so many bytes, the head included; raises Corrupted."""
    dtype, shape, nbytes = read_head(head)
    if len(head) + nbytes > len_bytes:
        raise Corrupted(f"a frame of {len_bytes - len(head)} bytes, whose head says {nbytes}")
    return dtype, shape
