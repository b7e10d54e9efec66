"""Shared memory.

An object is an array that everybody may write to, held by one message of a mailbox that nobody takes it from: so its
name and its life are those of any named object, and a new handle, or a message on its way, is one more hold of it.
"""

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

from shmipc import _native
from shmipc.base.errors import Closed, InvalidArgument, MailboxEmpty, NameTaken, NotFound
from shmipc.base.limits import LIMITS, check_count
from shmipc.facades.ratos.handles import (
    RAT_INVALID_HANDLE,
    RAT_RIGHT_READ,
    RAT_RIGHT_WRITE,
    Kind,
    RatHandle,
    adopt,
    close,
    make,
    table,
)
from shmipc.facades.ratos.statuses import OK, RatIpcStatus, check_flag, check_name, failed, whole
from shmipc.memory import arrays, membership, segments
from shmipc.transport.mailboxes import Mailbox
from shmipc.transport.rights import Access, Rights, is_named
from shmipc.transport.shared_buffers import SharedBuffer

MARK = 1 << 59  # the tag of the message that holds the array; no queue has one
MAX_BYTES = 1 << 40


class Memory:
    """A hold of a shared memory object; goes with the handle and the last mapping.

    Attributes:
        array: Its bytes, writable; shape (size,), dtype uint8.
    """

    def __init__(self, box: Mailbox) -> None:
        try:
            self.array: np.ndarray[Any, np.dtype[np.uint8]] = box.peek(tag=MARK).body
        except MailboxEmpty:
            name = box.name
            box.close()
            raise NotFound(f"{name!r} names something else, not shared memory") from None
        self.box = box
        self.references = 1  # the handle, and each mapping
        self._lock = threading.Lock()

    @property
    def member(self) -> _native.Member:
        return self.box.member

    def travelling(self) -> tuple[Mailbox, None]:
        return self.box, None

    def refer(self) -> None:
        with self._lock:
            if self.references == 0:
                raise Closed("the shared memory is closed in this process")
            self.references += 1

    def unmapped(self) -> None:
        """A mapping of it has gone."""
        self.close()

    def close(self) -> None:
        """Give one reference up."""
        with self._lock:
            self.references -= 1
            last = self.references == 0
        if last:
            self.box.close()


def create(name: str | None, size: int, persistent: bool) -> Memory:
    """A new object of zeros; raises NameTaken, OutOfMemory."""
    check_count("size", size, 1, MAX_BYTES)
    keeps = check_flag("persistent", persistent)
    if name is not None:
        name = check_name("shared memory", name)
        segments.check_name("shared memory name", name)
        refuse_taken(membership.current().member, name)  # before all the memory is made
    box = Mailbox.create(None, 1, LIMITS.min_slot_bytes, persistent=keeps)
    try:
        box.post(arrays.shared((size,), np.uint8), tag=MARK, flags=_native.OWN, timeout=0)
        if name is not None:
            box.member.serve_name(name, _native.NAME_BOX, box.index, box.life)
            refuse_granted(name)  # again: of two that are made at once, one sees the other, or each does
        return Memory(box)
    except BaseException:
        if keeps:
            box.unpersist()
        box.close()
        raise


def create_granted(name: str | None, size: int, access: Iterable[Access]) -> SharedBuffer:
    """A new object of zeros outside the system, under a name that is free in it too; errors as of `create`."""
    if name is None:
        return SharedBuffer(size, access=access)
    member = membership.current().member
    refuse_taken(member, name)  # before all the memory is made
    buffer = SharedBuffer(size, name=name, access=access)
    try:
        refuse_served(member, name)  # again, see `create`
    except BaseException:
        buffer.close()
        raise
    return buffer


def refuse_taken(member: _native.Member, name: str) -> None:
    """There is one namespace for what lies in the system and for what can be granted; raises NameTaken."""
    refuse_served(member, name)
    refuse_granted(name)


def refuse_served(member: _native.Member, name: str) -> None:
    try:
        member.lookup_name(name)
    except NotFound:
        return
    raise NameTaken(f"name {name!r} is taken in the system")


def refuse_granted(name: str) -> None:
    if is_named(name):
        raise NameTaken(f"name {name!r} is taken by memory, or a queue, that can be granted")


class Granted:
    """A hold of shared memory that other users may be let to: it lies in no system, and what travels is a capability.

    Attributes:
        array: Its bytes, writable if this hold may write.
        rights: RAT_RIGHT_* of this hold.
    """

    member = None

    def __init__(self, buffer: SharedBuffer) -> None:
        self.buffer = buffer
        self.array: np.ndarray[Any, np.dtype[np.uint8]] = buffer.array(buffer.size)
        self.rights = int(buffer.rights) & (RAT_RIGHT_READ | RAT_RIGHT_WRITE)

    def refer(self) -> None:
        """A mapping keeps the memory by itself."""

    def close(self) -> None:
        """Close this hold; of the owner: nobody opens it any more."""
        self.buffer.close()

    def unmapped(self) -> None:
        """See `refer`."""


def add_granted(buffer: SharedBuffer) -> RatHandle:
    granted = Granted(buffer)
    return table.add(Kind.MEMORY, granted, granted.rights, travels=False)


def open_again(member: _native.Member, index: int, life: int, _: Any) -> Memory:
    return Memory(member.open_box(index, life, cls=Mailbox))


adopt[Kind.MEMORY] = open_again


def RatCreateSharedMemory(
    name: str | None, size: int, persistent: bool = False, access: Iterable[Access] | None = None
) -> tuple[RatIpcStatus, RatHandle]:
    """Make shared memory, all zeros.

    Args:
        name: Under which others of the system open it; a slash before it is taken off. None: none.
        size: Bytes, at least 1.
        persistent: Keep it until it is unlinked, or the system ends; else it goes with the last handle or mapping of
            it, in any process, or message on its way.
        access: Lines `Access(rights, uid=, gid=)` of whom else to let to it by its name; with it, also an empty one,
            the memory can be granted, see `RatGrantCapability`. Such memory is in no system: it is given out as long as
            this handle is open, is not persistent, and its handle does not travel.

    Returns:
        ALREADY_EXISTS, NO_RESOURCES, INVALID_ARG.
    """
    if access is None:
        return make(Kind.MEMORY, lambda: create(name, size, persistent))
    try:
        if check_flag("persistent", persistent):
            raise InvalidArgument("memory with an access list is not persistent: it goes with its owner")
        bare = None if name is None else check_name("shared memory", name)
        check_count("size", size, 1, MAX_BYTES)
        return OK, add_granted(create_granted(bare, size, access))
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE


def RatOpenSharedMemory(
    name: str, owner: int | None = None, rights: int = RAT_RIGHT_READ
) -> tuple[RatIpcStatus, RatHandle]:
    """One more handle of the shared memory of that name: NOT_FOUND.

    Args:
        owner: Uid of whose memory it is, which was made with an access list; None: of this system, or else of our own
            user, made with one.
        rights: Wanted of memory with an access list: RAT_RIGHT_READ, or with it RAT_RIGHT_WRITE. ACCESS_DENIED: the
            list does not let us.
    """
    try:
        bare = check_name("shared memory", name)
        if owner is None:
            try:
                return OK, table.add(Kind.MEMORY, Memory(Mailbox.open(bare)))
            except NotFound:
                pass
        return OK, add_granted(SharedBuffer.open(bare, owner=owner, rights=Rights(whole("rights", rights))))
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE


def RatMapSharedMemory(shm: int, read_only: bool = False) -> tuple[RatIpcStatus, memoryview | None, int]:
    """Its bytes, and how many: valid until they are unmapped, also when the handle is closed before.

    Args:
        read_only: Assigning to the bytes raises TypeError; what others write is seen.

    Returns:
        ACCESS_DENIED: the handle has not the right to write, and ``read_only`` is not said.
    """
    try:
        only = check_flag("read_only", read_only)
        entry = table.find(shm, Kind.MEMORY, right=RAT_RIGHT_READ if only else RAT_RIGHT_READ | RAT_RIGHT_WRITE)
        memory: Memory | Granted = entry.object
        view = memory.array.data
        if only:
            view = view.toreadonly()
        memory.refer()
        _mapped[id(view)] = view, memory
        return OK, view, view.nbytes
    except Exception as error:
        return failed(error), None, 0


# The mappings of this process, by the id of the view, which is not used again while it is here.
_mapped: dict[int, tuple[memoryview, Memory | Granted]] = {}


def _leave(member: _native.Member) -> None:
    for key, (_, memory) in list(_mapped.items()):
        if memory.member is member:
            _mapped.pop(key, None)


table.leaving.append(_leave)


def RatUnmapSharedMemory(addr: memoryview, size: int) -> RatIpcStatus:
    """End a mapping; what was made of the bytes keeps them mapped.

    Args:
        addr: What `RatMapSharedMemory` has returned.
        size: Its size.

    Returns:
        INVALID_ARG: it is no mapping, is unmapped already, or has another size.
    """
    try:
        if not isinstance(addr, memoryview):
            raise TypeError(f"addr is what RatMapSharedMemory returned, not {type(addr).__name__}")
        known = _mapped.get(id(addr))
        if known is None or known[0] is not addr:
            raise InvalidArgument("addr is not mapped, or not any more")
        view, memory = known
        if whole("size", size) != memory.array.nbytes:
            raise InvalidArgument(f"size is {size}; {memory.array.nbytes} bytes were mapped")
        if _mapped.pop(id(addr), None) is None:
            raise InvalidArgument("addr is not mapped any more")
        try:
            view.release()
        except BufferError:
            pass  # an array was made of it, and keeps the memory
        memory.unmapped()
    except Exception as error:
        return failed(error)
    return OK


def RatCloseSharedMemory(shm: int) -> RatIpcStatus:
    """Close the handle; mappings stay."""
    return close(shm, Kind.MEMORY)


def RatUnlinkSharedMemory(name: str) -> RatIpcStatus:
    """Take the name away, and persistence with it; who has it open or mapped keeps it: NOT_FOUND."""
    try:
        memory = Memory(Mailbox.open(check_name("shared memory", name)))
        try:
            memory.box.unlink()
        finally:
            memory.close()
    except Exception as error:
        return failed(error)
    return OK
