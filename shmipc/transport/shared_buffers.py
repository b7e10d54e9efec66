"""Buffers that another user may be granted: bytes and arrays in sealed memory."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from shmipc import _native
from shmipc.base.descriptors import Descriptor
from shmipc.base.errors import Closed, Corrupted, InvalidArgument
from shmipc.base.limits import check_count
from shmipc.base.undisturbed import undisturbed
from shmipc.memory import sealed
from shmipc.transport.granted import Granted
from shmipc.transport.grantor import Gift, Store
from shmipc.transport.rights import HANDLES, Access, Capability, Kind, Peer, Reply, Rights

MAX_SIZE = 1 << 40


class BufferStore(Store):
    """A buffer in its owner: the descriptor of its memory."""

    kind = Kind.BUFFER

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.memory = Descriptor(sealed.make("buffer", size))

    def give(self, rights: Rights, peer: Peer) -> Gift:
        if not self.memory.is_open():
            raise Closed("the owner has closed the descriptor of the buffer")
        return Gift(self, [sealed.opened_again(self.memory.number, Rights.WRITE in rights)])

    def shut(self) -> None:
        self.memory.close()


class SharedBuffer(Granted):
    """Bytes in shared memory that other users can be granted, to read, or to read and write.

    Private at first: also processes of the same user open it only by name or with a capability. Zero bytes at first,
    their pages reserved. What one writes the others see at once; there is no order but what they agree on.

    Args:
        size: Bytes, 1 to 2**40.
        name: Under which it is opened; None: by capabilities alone.
        access: Whom it is opened to by name, beside our own user.

    Attributes:
        size: Bytes.

    Raises:
        InvalidArgument, LimitExceeded: The size, the name, or rights a buffer has not.
        NameTaken: Another process has the name.
        OutOfMemory: So much is not free.

    Source: shmipc/memory/sealed.py.
    """

    KIND = Kind.BUFFER
    _mapping: _native.Mapping | None = None

    def __init__(self, size: int, *, name: str | None = None, access: Iterable[Access] = ()) -> None:
        self.size = check_count("size", size, 1, MAX_SIZE)
        undisturbed(lambda: self._make(name, access), lambda _: self.close())

    def _make(self, name: str | None, access: Iterable[Access]) -> None:
        store = BufferStore(self.size)
        try:
            self._mapping = sealed.mapped(store.memory.number, self.size, True)
        except BaseException:
            store.shut()
            raise
        self._own(store, name, access)

    @property
    def buf(self) -> memoryview:
        """Its bytes, read-only without WRITE; what is made of them keeps them mapped. Raises Closed."""
        if self._closed or self._mapping is None:
            raise Closed("the buffer is closed in this process")
        return memoryview(self._mapping)

    def array(self, shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8, offset: int = 0) -> NDArray[Any]:
        """An array over its bytes, from ``offset`` on; stays valid after `close`.

        Raises:
            InvalidArgument: It does not fit, or its dtype holds Python objects.
            Closed: The buffer is closed in this process.
        """
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise InvalidArgument(f"dtype {kind} holds Python objects, which lie in one process")
        try:
            return np.ndarray(shape, kind, self.buf, offset)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"shape {shape} of {kind} at {offset} in {self.size} bytes: {error}") from error

    def _give_up(self) -> None:
        self._mapping = None
        super()._give_up()


def open_buffer(reply: Reply, capability: Capability | None) -> SharedBuffer:
    """The handle of a buffer that was passed; raises Corrupted."""
    if len(reply.descriptors) != 1:
        raise Corrupted(f"{reply.owner} passed {len(reply.descriptors)} descriptors for a buffer, which has 1")
    writable = bool(reply.answer.rights & Rights.WRITE)
    sealed.check(reply.descriptors[0], reply.answer.size, writable)
    handle = SharedBuffer.__new__(SharedBuffer)
    handle.size = reply.answer.size
    handle._mapping = sealed.mapped(reply.descriptors[0], handle.size, writable)
    handle._adopt(reply, capability)
    return handle


HANDLES[Kind.BUFFER] = open_buffer
