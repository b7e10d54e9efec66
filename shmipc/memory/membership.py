"""Which systems this process is a member of, and which of them is current.

The current system is, in an actor, the one that runs it; elsewhere the one this process opened last and has not
closed; otherwise the user's default system, joined or created at first use.
"""

import atexit
import os
import threading
from collections.abc import Callable, Sequence

from shmipc import _native
from shmipc.base.descriptors import Descriptor
from shmipc.base.errors import Closed, ForkedHandle, InvalidArgument, NotFound, ShmipcError
from shmipc.base.limits import LIMITS
from shmipc.base.undisturbed import quiet, undisturbed, wait_for_all
from shmipc.memory import segments


class Membership:
    """This process's place in one system: its member record, its own mailbox, the files.

    Attributes:
        name: Of the system.
        member: The core's member; every operation goes through it.
        box: The mailbox of this process.
        root_fd: A pidfd of the system's root; None when it has no root, this process is the root, or it was closed
            behind our back.
        is_root: Does the system end with this process?
        closing: No new work is accepted.
    """

    def __init__(
        self,
        segment: segments.Segment,
        member: _native.Member,
        box: _native.Box,
        *,
        is_root: bool = False,
        root_fd: int | None = None,
    ) -> None:
        self.name = segment.name
        self.segment = segment
        self.member = member
        self.box = box
        self.is_root = is_root
        self._root = None if root_fd is None else Descriptor(root_fd)
        self.pid = os.getpid()
        self.closing = False
        self.closed = False
        self.before_leave: list[Callable[[], None]] = []

    @property
    def root_fd(self) -> int | None:
        return self._root.number if self._root is not None and self._root.is_open() else None

    def keep_root(self, descriptor: int) -> None:
        """This pidfd of the root is ours from now on."""
        self._root = Descriptor(descriptor)

    def check(self) -> None:
        """Raise ForkedHandle or Closed when this membership cannot be used."""
        if self.pid != os.getpid():
            raise ForkedHandle(f"system {self.name!r} belongs to process {self.pid}, which forked this one")
        if self.closed or self.closing:
            raise Closed(f"system {self.name!r} is closed")

    def leave(self, final: bool = False) -> None:
        """Leave the system; the last to leave removes its files. Idempotent, and nothing in a forked child.

        A signal handler that interrupted a wait in this system leaves by another thread, once the wait has ended.

        Args:
            final: The process ends: what its arrays hold goes with it. Else it stays, for they may be read on.
        """
        waits = self.pid == os.getpid() and self.member.is_waiting_here()
        undisturbed(lambda: self._leave(final, waits))

    def _leave(self, final: bool, waits: bool) -> None:
        with _lock:
            if self.closed:
                return
            self.closed = self.closing = True
            if self in _open:
                _open.remove(self)
        if self.pid != os.getpid():
            return
        for step in self.before_leave:
            step()
        if waits:
            threading.Thread(target=self._leave_now, args=(final,), name="shmipc leave").start()
        else:
            self._leave_now(final)

    def _leave_now(self, final: bool) -> None:
        self.member.leave(final)
        try:
            self.segment.unlink_if_last()
        finally:
            self.segment.close()
            if self._root is not None:
                self._root.close()


_lock = threading.RLock()
_open: list[Membership] = []
_home: Membership | None = None  # of the actor that this process runs
_default: Membership | None = None
_forked = False  # from a process that had systems open


def own_mailbox(member: _native.Member) -> _native.Box:
    """Make the mailbox of this process, so that others can send to it."""
    box = member.make_box(_native.BOX_ACTOR, LIMITS.slots, LIMITS.slot_bytes)
    member.set_own_box(box)
    return box  # type: ignore[no-any-return]


def create(name: str, *, max_members: int, memory_limit: int | None, root: bool) -> Membership:
    """Create a system; this process is its first member."""
    limit = segments.default_memory_limit() if memory_limit is None else memory_limit

    def make() -> Membership:
        member, segment = segments.create(name, max_members=max_members, memory_limit=limit, root=root)
        return register(segment, member, is_root=root)

    return undisturbed(make, Membership.leave)


def attach(name: str) -> Membership:
    """Join a living system."""

    def join() -> Membership:
        member, segment = segments.attach(name)
        return register(segment, member, root_fd=None)

    return undisturbed(join, Membership.leave)


def register(
    segment: segments.Segment, member: _native.Member, *, is_root: bool = False, root_fd: int | None = None
) -> Membership:
    try:
        membership = Membership(segment, member, own_mailbox(member), is_root=is_root, root_fd=root_fd)
    except BaseException:
        member.leave()
        segment.unlink_if_last()
        segment.close()
        raise
    with _lock:
        _open.append(membership)
    return membership


def enter(name: str, fd: int, id: int, life_path: str, lifelines: Sequence[int], root_fd: int | None) -> Membership:
    """Become the prepared member ``id``, a worker; its system is current from now on. Owns the descriptors."""
    global _home
    segment = segments.Segment(name, segments.Paths.beside(life_path), os.dup(fd))
    member = _native.Member.join(fd, life_path, id=id, kind=_native.WORKER, lifelines=list(lifelines))
    index, count = member.own_box()
    membership = Membership(segment, member, member.open_box(index, count), root_fd=root_fd)
    with _lock:
        _open.append(membership)
        _home = membership
    return membership


def current() -> Membership:
    """The current system of this process; joins the default one when there is no other.

    Raises:
        ForkedHandle: This process was forked from one that had systems open, and has opened none itself.
        Closed: The actor's system is closed.
    """
    if _home is not None:
        return _home
    opened = [entry for entry in _open if entry is not _default]
    if opened:
        return opened[-1]
    if _forked:
        raise ForkedHandle("this process was forked from a member of a system; it may open one of its own")
    return default()


def default() -> Membership:
    """The user's default system, created or joined. It has no root and lives while any process has it open."""
    opened = _default
    return opened if opened is not None and not opened.closed else undisturbed(_open_default)


def _open_default() -> Membership:
    global _default
    with _lock:
        if _default is not None and not _default.closed:
            return _default
        name = segments.default_name()
        with segments.creation_lock():
            try:
                _default = attach(name)
            except NotFound:
                _default = create(name, max_members=LIMITS.members, memory_limit=None, root=False)
        return _default


def find(name: str) -> Membership:
    """The open system of that name.

    Raises:
        NotFound: This process does not have it open.
        ForkedHandle: Its parent did.
    """
    for entry in _open:
        if entry.name == name:
            return entry
    if _forked:
        raise ForkedHandle(f"system {name!r} was open in the process that forked this one")
    raise NotFound(f"this process does not have system {name!r} open; attach to it first")


def of_member(member: _native.Member) -> Membership | None:
    """The open system that this member belongs to."""
    for entry in _open:
        if entry.member is member:
            return entry
    return None


def check_same(what: object, known: _native.Member | None, name: str, member: _native.Member) -> None:
    """Raise InvalidArgument unless what has that member (None: not found yet) and system name is of `member`'s system,
    where alone its number means it.
    """
    if known is member:
        return
    found = of_member(member)
    if found is None or found.name != name:
        raise InvalidArgument(f"{what!r} is of system {name}, not of {found.name if found else 'one that was closed'}")


def home() -> Membership | None:
    """The membership of the actor that this process runs; None when it runs none."""
    return _home


def open_systems() -> list[Membership]:
    """The systems this process has open, oldest first."""
    return list(_open)


def leave_all() -> None:
    """Leave every system, the newest first; the process ends, and one more Ctrl-C is of no use to anybody."""
    with quiet():
        wait_for_all()  # one whose waiter was interrupted may be opening a system
        for entry in reversed(open_systems()):
            try:
                entry.leave(final=True)
            except ShmipcError:
                pass  # the others are to be left too


def _after_fork() -> None:
    global _home, _default, _forked, _lock
    _lock = threading.RLock()
    _forked = _forked or bool(_open)
    _open.clear()
    _home = _default = None


os.register_at_fork(after_in_child=_after_fork)
atexit.register(leave_all)
