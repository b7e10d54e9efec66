"""The table of handles, which each process has of its own: numbers, rights, references."""

import itertools
import os
import secrets
from collections.abc import Callable
from enum import Enum
from typing import Any

from shmipc import _native
from shmipc.base.errors import AccessDenied, Closed, InvalidArgument, LimitExceeded, NotFound
from shmipc.facades.ratos.statuses import OK, RatIpcStatus, failed, whole
from shmipc.memory import membership

RAT_RIGHT_READ = 1  # get messages, read, map to read
RAT_RIGHT_WRITE = 2  # post messages, write, map to write, set
RAT_RIGHT_WAIT = 4  # wait for it, lock it
RAT_RIGHTS_ALL = 7

RAT_HANDLE_NONBLOCKING = 1  # flag: pipes and sockets do not wait


class RatHandle(int):
    """A handle: the number of an entry in the table of this process, which means nothing in another.

    In ``wparam`` or ``lparam`` of a message it travels as a handle and arrives as one of the receiver's own; a plain
    int with the same value is a number.
    """

    def __repr__(self) -> str:
        return f"RatHandle({int(self):#x})"


RAT_INVALID_HANDLE = RatHandle(0)
RatMessageQueue = RatSharedMemory = RatPipe = RatSocket = RatEvent = RatHandle  # as the seed has them


class Kind(Enum):
    """What a handle stands for."""

    QUEUE = "message queue"
    MEMORY = "shared memory"
    EVENT = "event"
    MUTEX = "mutex"
    SEMAPHORE = "semaphore"
    RWLOCK = "read-write lock"
    PIPE = "pipe"
    SOCKET = "socket"
    PROCESS = "process"
    COMPLETIONS = "completion queue"


class Entry:
    """One line of the table.

    Attributes:
        number: The handle.
        kind: What it stands for.
        object: That, with a ``close()`` that gives up this handle's reference.
        rights: RAT_RIGHT_* of this handle; a copy that travels has the same.
        travels: May it go to another process?
        member: Of the system that the object is in; None: in none.
    """

    __slots__ = ("number", "kind", "object", "rights", "travels", "member")

    def __init__(
        self, kind: Kind, object: Any, rights: int, travels: bool, member: _native.Member | None, number: RatHandle
    ) -> None:
        self.kind = kind
        self.object = object
        self.rights = rights
        self.travels = travels
        self.member = member
        self.number = number


class Table:
    """The handles of this process. Numbers are never used again; another process's are none of them."""

    def __init__(self) -> None:
        self.leaving: list[Callable[[_native.Member], None]] = []  # called when a system is left
        self.forget()
        os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        self._first = secrets.randbelow(1 << 30) + (1 << 30) << 32
        self._serials = itertools.count(1)
        self._entries: dict[int, Entry] = {}
        self._members: set[_native.Member] = set()

    def add(self, kind: Kind, object: Any, rights: int = RAT_RIGHTS_ALL, *, travels: bool = True) -> RatHandle:
        """A new handle; the table closes the object with it, or when its system is left."""
        member: _native.Member | None = getattr(object, "member", None)
        number = RatHandle(self._first | next(self._serials))
        self._entries[number] = Entry(kind, object, rights, travels, member, number)
        if member is not None and member not in self._members:
            place = membership.of_member(member)
            if place is not None:
                self._members.add(member)
                place.before_leave.append(lambda: self._leave(member))
        return number

    def _leave(self, member: _native.Member) -> None:
        """Its system is left: the handles go."""
        self._members.discard(member)
        for number, entry in list(self._entries.items()):
            if entry.member is member:
                self._entries.pop(number, None)
        for step in self.leaving:
            step(member)

    def find(self, handle: Any, *kinds: Kind, right: int = 0) -> Entry:
        """The entry of a handle.

        Raises:
            InvalidArgument: It is no handle of this process, is closed, or stands for something else.
            AccessDenied: The handle has not the right.
        """
        entry = self._entries.get(whole("handle", handle))
        if entry is None:
            raise InvalidArgument(f"{int(handle):#x} is no open handle of this process")
        if kinds and entry.kind not in kinds:
            wanted = " or ".join(kind.value for kind in kinds)
            raise InvalidArgument(f"{int(handle):#x} is a {entry.kind.value}, not a {wanted}")
        if right & ~entry.rights:
            raise AccessDenied(f"handle {int(handle):#x} has rights {entry.rights}, {right} are needed")
        return entry

    def take(self, handle: Any, *kinds: Kind) -> Entry:
        """The same, which is no handle any more; one of several threads gets it."""
        entry = self.find(handle, *kinds)
        if self._entries.pop(entry.number, None) is None:
            raise InvalidArgument(f"{int(handle):#x} is no open handle of this process")
        return entry

    def entries(self, kind: Kind) -> list[Entry]:
        return [entry for entry in list(self._entries.values()) if entry.kind is kind]


table = Table()

# How what travels is opened where it arrives: (index, life, state) -> the object. Filled by those who define the kinds.
adopt: dict[Kind, Callable[[_native.Member, int, int, Any], Any]] = {}


def close(handle: Any, *kinds: Kind) -> RatIpcStatus:
    """Close a handle: its reference is given up, whoever waits by it is told."""
    try:
        table.take(handle, *kinds).object.close()
    except Exception as error:
        return failed(error)
    return OK


def make(kind: Kind, maker: Callable[[], Any], rights: int = RAT_RIGHTS_ALL) -> tuple[RatIpcStatus, RatHandle]:
    """A handle of what the maker makes."""
    try:
        return OK, table.add(kind, maker(), rights)
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE


def RatSetHandleFlags(handle: int, flags: int) -> RatIpcStatus:
    """Switch `RAT_HANDLE_NONBLOCKING` on or off; for pipes and sockets, which then say TIMEOUT instead of waiting."""
    try:
        if whole("flags", flags) & ~RAT_HANDLE_NONBLOCKING:
            raise InvalidArgument(f"flags are {flags:#x}; there is {RAT_HANDLE_NONBLOCKING:#x}")
        table.find(handle, Kind.PIPE, Kind.SOCKET).object.blocking = not flags
    except Exception as error:
        return failed(error)
    return OK


# --- handles in messages ---------------------------------------------------------------------------------------

Travelling = tuple[str, int, int, int, Any, Any]  # kind, rights, index, life, state, what keeps the object meanwhile


def pack(value: int) -> Travelling | None:
    """What goes in the place of a handle; None for a number, and for `RAT_INVALID_HANDLE`.

    Raises:
        InvalidArgument: It is no handle of this process.
        AccessDenied: It is of something that only this process can use.
    """
    if not isinstance(value, RatHandle) or value == RAT_INVALID_HANDLE:
        return None
    entry = table.find(value)
    if not entry.travels:
        raise AccessDenied(f"handle {value!r} is of a {entry.kind.value} that only this process can use")
    core, state = entry.object.travelling() if hasattr(entry.object, "travelling") else (entry.object, None)
    if state is None and hasattr(core, "_state"):
        state = core._state()
    return entry.kind.name, entry.rights, core.index, core.life, state, _native.Hold(core)


def unpack(member: _native.Member, packed: Travelling) -> RatHandle:
    """A handle of this process for what has arrived.

    Raises:
        InvalidArgument: It refers to nothing.
        OutOfMemory, LimitExceeded: It cannot be opened.
    """
    try:
        name, rights, index, life, state, _ = packed
        kind = Kind[name]
        return table.add(kind, adopt[kind](member, index, life, state), rights & RAT_RIGHTS_ALL)
    except (NotFound, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, LimitExceeded | Closed):
            raise
        raise InvalidArgument(f"the message refers to what is not there: {packed!r:.80}") from error
