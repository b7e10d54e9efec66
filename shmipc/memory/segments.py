"""The files of a system in /dev/shm: their names, creation, sweeping and removal.

A system is two files, ``shmipc.<uid>.<system>`` (mapped) and the same with ``.life`` (its bytes are the life
locks of the members, and are never touched). Create, attach, sweep and unlink serialise on one lock file for each user,
``.shmipc.<uid>.lock``, which is never removed, so that a sweeper cannot unlink what a creator has made and not yet
locked. Any of these files may be deleted by hand while no process uses them; the next start makes them again.

``SHMIPC_NAMESPACE`` (letters and digits) is put before system names with ``~``: systems of different namespaces do
not see, and do not sweep, each other.

Source: docs/explanation/failure-model.md; native/memory/segment.h.
"""

import errno
import fcntl
import os
import re
import secrets
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import posix_ipc

from shmipc import _native
from shmipc.base.deadlines import Deadline
from shmipc.base.errors import AccessDenied, Closed, Corrupted, InvalidArgument, LayoutMismatch, NameTaken, NotFound
from shmipc.base.limits import LIMITS

SHM = Path("/dev/shm")
NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
LIFE = ".life"
LOCK = "hhqqi4x"  # struct flock


def check_name(what: str, name: str) -> str:
    """The name, if it may be one: 1 to 64 of letters, digits, dot, underscore, hyphen.

    Raises:
        TypeError: Not a str.
        InvalidArgument: Other characters, or too long.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a str, not {type(name).__name__}")
    if not NAME_PATTERN.fullmatch(name):
        raise InvalidArgument(f"{what} {name!r} does not match [A-Za-z0-9._-]{{1,{LIMITS.name_length}}}")
    return name


def check_system_name(name: str) -> str:
    """As `check_name`; ``.life`` at the end is ours."""
    if check_name("system name", name).endswith(LIFE):
        raise InvalidArgument(f"system name {name!r} ends in {LIFE!r}, which is kept for the life-lock files")
    return name


def private_name() -> str:
    """A name that no other system has."""
    return f"s-{os.getpid()}-{secrets.token_hex(6)}"


def default_name() -> str:
    """The system that all programs of this user share when they name none; one for each layout."""
    return f"default-{_native.LAYOUT & 0xFFFFFFFFFFFFFFFF:016x}"


def prefix() -> str:
    """What the file names of this user and namespace begin with."""
    namespace = os.environ.get("SHMIPC_NAMESPACE", "")
    if namespace and not re.fullmatch(r"[A-Za-z0-9]{1,32}", namespace):
        raise InvalidArgument(f"SHMIPC_NAMESPACE is {namespace!r}; it must be 1 to 32 letters and digits")
    return f"shmipc.{os.getuid()}." + (f"{namespace}~" if namespace else "")


@dataclass(frozen=True)
class Paths:
    """Where the two files of a system are; ``text`` is the segment's path."""

    text: str

    @classmethod
    def of(cls, name: str) -> "Paths":
        return cls(f"{SHM}/{prefix()}{name}")

    @classmethod
    def beside(cls, life: str) -> "Paths":
        """By the path of the life-lock file, of whatever namespace that is."""
        return cls(life.removesuffix(LIFE))

    @property
    def segment(self) -> Path:
        return Path(self.text)

    @property
    def life(self) -> Path:
        return Path(self.text + LIFE)


def default_memory_limit() -> int:
    """Half of what /dev/shm has free, at least 8 MiB, in bytes."""
    free = os.statvfs(SHM)
    return max(LIMITS.memory_limit, free.f_bavail * free.f_frsize // 2)


# --- the creation lock -----------------------------------------------------------------------------------------

_in_process = threading.RLock()
_held: list[int] = []  # the descriptor, once for each nested hold


@contextmanager
def creation_lock(timeout: float | None = None) -> Iterator[None]:
    """Hold the user's creation lock; may nest. Blocks while another process or thread holds it.

    Raises:
        Timeout: Another process held it for ``timeout`` seconds; it may be stopped.
    """
    with _in_process:
        _held.append(_held[-1] if _held else lock_file(timeout))
        try:
            yield
        finally:
            descriptor = _held.pop()
            if not _held:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(LOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
                os.close(descriptor)


def _after_fork() -> None:
    """The forking process keeps its lock: the child's copy of the descriptor must not hold it on."""
    global _in_process
    _in_process = threading.RLock()
    for descriptor in set(_held):
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)


def lock_file(timeout: float | None = None) -> int:
    """A fresh descriptor of the lock file, locked, of the file that has the name now; raises Timeout."""
    deadline = Deadline(timeout)
    path = SHM / f".shmipc.{os.getuid()}.lock"
    request = struct.pack(LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except PermissionError as error:
            raise AccessDenied(f"cannot open {path}: {error.strerror}") from error
        try:
            check_ours(descriptor, path)
            take_lock(descriptor, path, request, deadline)
            if same_file(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def check_ours(descriptor: int, path: Path) -> None:
    """Raise AccessDenied when the open file is another user's, or no file."""
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
        raise AccessDenied(f"{path} belongs to uid {found.st_uid}, not to {os.geteuid()}, or is no file")


def file_of(descriptor: int) -> tuple[int, int]:
    """Device and inode."""
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def take_lock(descriptor: int, path: Path, request: bytes, deadline: Deadline) -> None:
    if deadline.left() is None:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, request)
        return
    while True:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):
            deadline.check(f"the creation lock {path}, which another process holds")
            deadline.pause(0.01)
        else:
            return


def same_file(descriptor: int, path: Path) -> bool:
    """Is the open file still the one that has this name?"""
    mine = os.fstat(descriptor)
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return mine.st_nlink > 0 and (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)


# --- looking ---------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[int | None]:
    """A descriptor of our own file, or None when there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:  # also of what is no file: a link, a directory, a socket
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise AccessDenied(f"cannot open {path}: {error.strerror}") from error
    try:
        check_ours(descriptor, path)
        yield descriptor
    finally:
        os.close(descriptor)


def is_alive(paths: Paths) -> bool:
    """Does any process have this system open? For the holder of the creation lock.

    A held life lock says yes. When none is held (the file may have been deleted) the member table decides; a half
    made system has none, and its creator would still hold the creation lock. A forked child has no system open: what it
    inherited is mapped, and needs no file.
    """
    with opened(paths.life) as life, opened(paths.segment) as segment:
        if life is not None and _native.life_locked(life, LIMITS.max_members):
            forks = segment is not None and _native.only_forks_locked(life, LIMITS.max_members, segment)
            if not forks:
                return True
        if segment is None or _native.segment_state(segment) not in ("ready", "closed"):
            return False
        return _native.segment_members_alive(segment)


def unlink(paths: Paths) -> None:
    """Remove both files, whichever are there. For the holder of the creation lock."""
    for path in (paths.segment, paths.life):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def system_names() -> list[str]:
    """The systems of this user and namespace that have files, dead or alive."""
    start = prefix()
    names = {entry.removesuffix(LIFE).removeprefix(start) for entry in os.listdir(SHM) if entry.startswith(start)}
    return sorted(name for name in names if "~" not in name)  # else of another namespace


def sweep(*, timeout: float | None = None, found: Callable[[str, Paths], bool] = lambda name, paths: True) -> list[str]:
    """Remove the systems of this user and namespace that no process has open; their names.

    Args:
        timeout: Seconds to wait for the creation lock; None waits for ever. Raises Timeout.
        found: Told each dead system before it is removed; False keeps it.
    """
    removed = []
    with creation_lock(timeout):
        for system in system_names():
            paths = Paths.of(system)
            try:
                if not is_alive(paths) and found(system, paths):
                    unlink(paths)
                    removed.append(system)
            except (AccessDenied, PermissionError):
                continue  # not ours
    return removed


# --- creating and attaching ------------------------------------------------------------------------------------


@dataclass
class Segment:
    """A system's files as this process has them open; ``fd`` is a descriptor of the segment of our own."""

    name: str
    paths: Paths
    fd: int
    file: tuple[int, int] = field(init=False)  # device and inode

    def __post_init__(self) -> None:
        found = os.fstat(self.fd)
        self.file = found.st_dev, found.st_ino

    def is_open(self) -> bool:
        """Is the descriptor still ours? A program may have closed all it has, and its number may be another file's."""
        try:
            found = os.fstat(self.fd)
        except OSError:
            return False
        return self.file == (found.st_dev, found.st_ino)

    def descriptor(self) -> int:
        """The descriptor, opened again if it was closed behind our back.

        Raises:
            NotFound: It was closed, and the file was deleted.
        """
        if not self.is_open():
            with opened(self.paths.segment) as found:
                if found is None or file_of(found) != self.file:
                    raise NotFound(f"the files of system {self.name!r} were deleted while it runs")
                self.fd = os.dup(found)
        return self.fd

    def close(self) -> None:
        if self.is_open():
            os.close(self.fd)

    def unlink_if_last(self) -> bool:
        """Remove the files when no process has the system open any more."""
        with creation_lock():
            with opened(self.paths.segment) as found:
                if found is None or file_of(found) != self.file:
                    return False
            if is_alive(self.paths):
                return False
            unlink(self.paths)
            return True


def make_file(path: Path, size: int) -> int:
    """A new shared memory file of ``size`` bytes, none of them reserved; its descriptor."""
    memory = posix_ipc.SharedMemory(f"/{path.name}", posix_ipc.O_CREX, mode=0o600, size=size)
    descriptor: int = memory.fd
    os.fchmod(descriptor, 0o600)  # whatever the umask is
    os.set_inheritable(descriptor, False)
    return descriptor


def create(name: str, *, max_members: int, memory_limit: int, root: bool) -> tuple[_native.Member, Segment]:
    """Make a system and become its first member. Sweeps dead systems first.

    Raises:
        NameTaken: A living system has the name.
        AccessDenied: A file of another user has it.
        OutOfMemory: /dev/shm is full.
    """
    paths = Paths.of(name)
    with creation_lock():
        sweep()
        if os.path.lexists(paths.segment) or os.path.lexists(paths.life):
            is_alive(paths)  # or not ours, which it says
            raise NameTaken(f"a living system has the name {name!r}")
        try:
            os.close(make_file(paths.life, 0))
            descriptor = make_file(paths.segment, _native.segment_size(max_members, memory_limit))
            own = os.dup(descriptor)
            try:
                member = _native.Member.create(
                    descriptor,
                    str(paths.life),
                    max_members=max_members,
                    memory_limit=memory_limit,
                    name="root" if root else "",
                    root=root,
                )
            except BaseException:
                os.close(own)
                raise
        except posix_ipc.PermissionsError as error:
            raise AccessDenied(f"cannot make {paths.segment}: {error}") from error
        except BaseException:
            unlink(paths)
            raise
        return member, Segment(name, paths, own)


def attach(name: str) -> tuple[_native.Member, Segment]:
    """Join a living system.

    Raises:
        NotFound: No living system has the name.
        LayoutMismatch: It has another shared layout.
        Closed: Its root has ended.
    """
    paths = Paths.of(name)
    with creation_lock():
        if not is_alive(paths):
            unlink(paths)
            raise NotFound(f"no living system has the name {name!r}")
        try:
            descriptor = os.open(paths.segment, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFound(f"the files of system {name!r} were deleted while it runs") from None
        try:
            check_state(name, _native.segment_state(descriptor))
            if not paths.life.exists():
                os.close(make_file(paths.life, 0))  # deleted by hand; the members lock it again within a second
            own = os.dup(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        try:
            member = _native.Member.join(descriptor, str(paths.life), kind=_native.ATTACHED)
        except BaseException:
            os.close(own)
            raise
        return member, Segment(name, paths, own)


def check_state(name: str, state: str) -> None:
    """Raise what an attacher is to know about a segment that is not ready."""
    if state == "closed":
        raise Closed(f"the root of system {name!r} has ended")
    if state == "other-layout":
        raise LayoutMismatch(f"system {name!r} was made by an incompatible version of shmipc")
    if state == "corrupted":
        raise Corrupted(f"the segment of system {name!r} holds values that cannot be")
    if state != "ready":
        raise NotFound(f"system {name!r} is not ready: {state}")
