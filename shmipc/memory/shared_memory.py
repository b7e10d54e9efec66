"""Named shared memory with the names of `multiprocessing.shared_memory`, without its resource tracker.

A segment is a file in /dev/shm of exactly the size that was asked for; its pages are reserved before it is mapped, so a
full /dev/shm is `OutOfMemory` and never SIGBUS. Each process that has a tracked segment open holds a shared lock on it,
which the kernel drops with the process: the last to close it removes the name, whoever made it, and nobody removes it
under others. A generated name whose processes were all killed is removed when the next segment is made. A forked child
has a lock of its own, taken for it before the fork; what is mapped has none, since arrays outlive `close`.
"""

import errno
import fcntl
import mmap
import os
import secrets
import stat
import struct
import threading
import weakref

import posix_ipc

from shmipc.base.descriptors import Descriptor
from shmipc.base.errors import AccessDenied, InvalidArgument, NameTaken, NotFound, OutOfMemory
from shmipc.memory import sealed, segments

TRACKED = stat.S_ISVTX | 0o600  # the mode of a tracked segment: the bit says so to all who open it
STEP = 16 << 20  # bytes reserved at a time, so that a signal does not undo minutes of work


class SharedMemory:
    """A named piece of shared memory; takes the place of `multiprocessing.shared_memory.SharedMemory`.

    Args:
        name: Of the file in /dev/shm; None makes one up. Any program may open it, multiprocessing's class too.
        create: Make it; else open what is there.
        size: Bytes, when it is made. Exact: `size` and ``len(buf)`` are this number in every process.
        track: The segment goes when the last process that has it open closes it or ends. False: it stays until
            `unlink`. Only its maker decides that; who opens it keeps to it.

    Raises:
        NameTaken: (a FileExistsError) ``create``, and the name is taken.
        NotFound: (a FileNotFoundError) Nothing has the name.
        InvalidArgument: (a ValueError) A size below 1, no name to open, a name with a slash in it.
        OutOfMemory: /dev/shm has too little room.
        AccessDenied: (a PermissionError) Another user's.
    """

    _fd: int = -1
    _identity: tuple[int, int] = (0, 0)  # device and inode: names may be used again
    _map: mmap.mmap | None = None
    _buf: memoryview | None = None

    def __init__(self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool = True) -> None:
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"size must be an int, not {type(size).__name__}")
        if create and size < 1:
            raise InvalidArgument(f"size is {size}; a segment has at least 1 byte")
        if size < 0:
            raise InvalidArgument(f"size is {size}; it must not be negative")
        if name is None and not create:
            raise InvalidArgument("name is None, which is for create=True")
        if name is not None:
            name = _check(name)
        self._pid = os.getpid()
        self._tracked = track
        if create:
            self._name, self._fd = _make(name, size, track)
        else:
            self._name = name or ""
            self._fd, self._tracked = _open(self._name)
        try:
            found = os.fstat(self._fd)
            self._file = Descriptor(self._fd)
            self._tracked = self._tracked and found.st_uid == os.geteuid()
            self._identity = (found.st_dev, found.st_ino)
            self._size = found.st_size
            if self._size == 0:
                raise InvalidArgument(f"{_path(self._name)} has no bytes: its maker is at work, or died there")
            other = _open_again(self._fd)
            try:
                self._map = mmap.mmap(other, self._size)
            finally:
                os.close(other)
            self._buf = memoryview(self._map)
            if self._tracked:
                _tracked[id(self)] = self
        except BaseException as error:
            if create:
                _remove(self._name, self._identity)
            os.close(self._fd)
            self._fd = -1
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise OutOfMemory(
                    f"this process cannot map {self._size} bytes of shared memory", needed=self._size
                ) from error
            raise

    @property
    def buf(self) -> memoryview:
        """Its bytes, writable; what is made of them keeps them mapped.

        Raises:
            InvalidArgument: (a ValueError) It is closed.
        """
        if self._buf is None:
            raise InvalidArgument(f"segment {self._name!r} is closed in this process")
        return self._buf

    @property
    def name(self) -> str:
        """Under which other processes open it."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes, exactly as it was made."""
        return self._size

    def close(self) -> None:
        """Give it up in this process; idempotent. A tracked one goes with the last process that has it open.

        What was made of `buf` stays valid: the memory is unmapped with the last of it, never under an array.
        """
        if self._fd < 0:
            return
        self._buf = self._map = None
        self._give_up()

    def _give_up(self) -> None:
        fd, self._fd = self._fd, -1
        if not self._file.is_open():
            return  # the program has closed it, and the number may be another file's
        try:
            if self._tracked and self._pid == os.getpid():
                _unlink_if_last(fd, self._name)
        finally:
            os.close(fd)

    def _lock_again(self) -> int:
        """A descriptor with a lock of its own; -1: none could be had, or it is closed."""
        fd = -1
        try:
            if self._fd >= 0 and self._file.is_open():
                fd = _open_again(self._fd)
                _lock(fd, fcntl.F_RDLCK, wait=False)
        except OSError:
            if fd >= 0:
                os.close(fd)
            return -1
        return fd

    def _become_the_childs(self, fd: int) -> None:
        """In a forked child: that descriptor, with its lock, takes the place of the one it shares with its parent."""
        if self._fd >= 0 and self._file.is_open():
            os.dup2(fd, self._fd, inheritable=False)
            self._pid = os.getpid()
        os.close(fd)

    def unlink(self) -> None:
        """Remove the name now; who has it open keeps the memory.

        Raises:
            NotFound: (a FileNotFoundError) It was removed before.
        """
        if not _remove(self._name, self._identity):
            raise NotFound(f"{_path(self._name)} was removed before")

    def __del__(self) -> None:
        if self._fd < 0:
            return
        try:
            self.close()
        except Exception:
            pass  # the interpreter ends, and what this needs is gone

    def __reduce__(self) -> tuple[type["SharedMemory"], tuple[str, bool, int]]:
        return type(self), (self._name, False, self._size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, size={self._size})"


_tracked: "weakref.WeakValueDictionary[int, SharedMemory]" = weakref.WeakValueDictionary()  # by their id
_for_children: dict[int, dict[SharedMemory, int]] = {}  # of each thread that is about to fork: descriptors with a lock


def _tracked_ones() -> list[SharedMemory]:
    return [memory for reference in _tracked.valuerefs() if (memory := reference()) is not None]


def _before_fork() -> None:
    """Before: the parent may close it as soon as it has forked."""
    locked = _for_children[threading.get_ident()] = {}
    for memory in _tracked_ones():
        if (fd := memory._lock_again()) >= 0:
            locked[memory] = fd


def _after_fork_in_parent() -> None:
    for fd in _for_children.pop(threading.get_ident(), {}).values():
        os.close(fd)


def _after_fork_in_child() -> None:
    locked = _for_children.pop(threading.get_ident(), {})
    for others in _for_children.values():  # for children of other threads
        for fd in others.values():
            os.close(fd)
    _for_children.clear()
    for memory in set(_tracked_ones()).difference(locked):  # made by another thread meanwhile
        if (fd := memory._lock_again()) >= 0:
            locked[memory] = fd
    for memory, fd in locked.items():
        memory._become_the_childs(fd)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _path(name: str) -> str:
    return f"{segments.SHM}/{name}"


def _check(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str or None, not {type(name).__name__}")
    bare = name.removeprefix("/")
    if not bare or "/" in bare or "\0" in bare or bare in (".", ".."):
        raise InvalidArgument(f"name is {name!r}; it must be a file name")
    return bare


def _generated() -> str:
    """What generated names of this user and namespace begin with."""
    return "shmipc-memory" + segments.prefix().removeprefix("shmipc")


def _make(name: str | None, size: int, track: bool) -> tuple[str, int]:
    """A new file, its pages reserved, locked when it is tracked; name and descriptor."""
    found = os.statvfs(segments.SHM)
    free = found.f_bavail * found.f_frsize
    if size >= sealed.SMALL:  # to find out by taking it would leave nobody any, and /dev/shm may exceed the machine
        left = sealed.free_bytes()
        free = free if left is None else min(free, left)
    if size > free:
        raise _too_little(size, free)
    with segments.creation_lock():
        _sweep()
        chosen = _generated() + secrets.token_hex(8) if name is None else name
        try:
            memory = posix_ipc.SharedMemory(f"/{chosen}", posix_ipc.O_CREX, mode=TRACKED if track else 0o600)
        except posix_ipc.ExistentialError:
            raise NameTaken(f"{_path(chosen)} is there already") from None
        except posix_ipc.PermissionsError as error:
            raise AccessDenied(f"cannot make {_path(chosen)}: {error}") from error
        except (ValueError, OSError) as error:
            raise InvalidArgument(f"name {chosen!r}: {error}") from error
        fd: int = memory.fd
        try:
            os.set_inheritable(fd, False)
            if track:
                os.fchmod(fd, TRACKED)  # whatever the umask left of it
                _lock(fd, fcntl.F_RDLCK)
        except BaseException:
            os.unlink(_path(chosen))
            os.close(fd)
            raise
    try:
        os.ftruncate(fd, size)
        for start in range(0, size, STEP):
            os.posix_fallocate(fd, start, min(STEP, size - start))
    except BaseException as error:
        os.unlink(_path(chosen))
        os.close(fd)
        if isinstance(error, OSError):
            found = os.statvfs(segments.SHM)
            free = found.f_bavail * found.f_frsize
            raise _too_little(size, free) from error
        raise
    return chosen, fd


def _too_little(size: int, free: int) -> OutOfMemory:
    return OutOfMemory(
        f"{size} bytes of shared memory are needed, {free} are free; make /dev/shm larger", needed=size, free=free
    )


def _open(name: str) -> tuple[int, bool]:
    """The file that has the name, locked when it is tracked, and whether it is."""
    while True:
        try:
            fd = os.open(_path(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFound(f"{_path(name)} is not there") from None
        except PermissionError as error:
            raise AccessDenied(f"cannot open {_path(name)}: {error.strerror}") from error
        try:
            found = os.fstat(fd)
            if stat.S_IMODE(found.st_mode) != TRACKED:
                return fd, False
            _lock(fd, fcntl.F_RDLCK)
            if segments.same_file(fd, segments.SHM / name):
                return fd, True
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # removed between the two: look again


def _open_again(fd: int) -> int:
    """The same file, with locks of its own."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)


def _lock(fd: int, kind: int, wait: bool = True) -> None:
    request = struct.pack(segments.LOCK, kind, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)


def _unlink_if_last(fd: int, name: str) -> bool:
    """Remove the name if no other has the file open. Taken by the lock, nobody opens it meanwhile."""
    with segments.creation_lock():
        try:
            _lock(fd, fcntl.F_WRLCK, wait=False)
        except (BlockingIOError, PermissionError):
            return False
        if segments.same_file(fd, segments.SHM / name):
            os.unlink(_path(name))
    return True


def _remove(name: str, identity: tuple[int, int]) -> bool:
    """Remove the name if it is that file's still, and not a later one's.

    Raises:
        AccessDenied: Another user's.
    """
    with segments.creation_lock():
        try:
            found = os.stat(_path(name), follow_symlinks=False)
            if (found.st_dev, found.st_ino) != identity:
                return False
            os.unlink(_path(name))
        except FileNotFoundError:
            return False
        except PermissionError as error:
            raise AccessDenied(f"cannot remove {_path(name)}: {error.strerror}") from error
    return True


def _sweep() -> None:
    """Remove the generated ones that no process has open. For the holder of the creation lock."""
    start = _generated()
    for entry in os.listdir(segments.SHM):
        if not entry.startswith(start) or "~" in entry[len(start) :]:
            continue
        try:
            with segments.opened(segments.SHM / entry) as fd:
                if fd is not None and stat.S_IMODE(os.fstat(fd).st_mode) == TRACKED:
                    _unlink_if_last(fd, entry)
        except (AccessDenied, OSError):
            continue  # another's
