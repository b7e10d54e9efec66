"""Sealed memory: what another user may reach of this process, passed by descriptor, never by name.

It is a memfd, sealed against shrinking, growing and further seals before anybody else sees it: nobody can make
another's mapping of it raise SIGBUS by truncating it. Its mode is 0600: who was passed a descriptor opened for reading
cannot open it again for writing, unless he is the owner's user or root.

Source: docs/explanation/trust.md.
"""

import errno
import fcntl
import os
import re

from shmipc import _native
from shmipc.base.errors import AccessDenied, Corrupted, OutOfMemory

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
NOEXEC_SEAL = 0x0008  # MFD_NOEXEC_SEAL, since Linux 6.3
SMALL = 1 << 20  # bytes that are asked for without a look at what is free
STEP = 16 << 20  # bytes reserved at a time, so that a signal does not undo minutes of work


def make(label: str, nbytes: int) -> int:
    """New sealed memory of exactly so many zero bytes, its pages reserved: a descriptor to read and write it.

    Raises:
        OutOfMemory: So much is not free.
    """
    check_free(nbytes)
    try:
        descriptor = os.memfd_create(f"shmipc {label}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.memfd_create(f"shmipc {label}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, nbytes)
        for start in range(0, nbytes, STEP):
            os.posix_fallocate(descriptor, start, min(STEP, nbytes - start))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise OutOfMemory(f"{nbytes} bytes of sealed memory are needed: {error.strerror}", needed=nbytes) from error
        raise
    return descriptor


def check_free(nbytes: int) -> None:
    """See that there is room: no file system bounds a memfd, and who asks for too much is killed.

    Raises:
        OutOfMemory: The machine, or the control group, has less.
    """
    if nbytes < SMALL:
        return
    free = free_bytes()
    if free is not None and nbytes > free:
        raise OutOfMemory(f"{nbytes} bytes of sealed memory are needed, {free} are free", needed=nbytes, free=free)


def free_bytes() -> int | None:
    """What the machine and the control group have left; None: neither can be seen."""
    free = _native.memory_free()
    try:
        with open("/proc/meminfo", "rb") as file:
            found = re.search(rb"MemAvailable:\s*(\d+) kB", file.read())
    except OSError:
        found = None
    if found is not None:
        available = int(found[1]) << 10
        free = available if free is None else min(free, available)
    return free


def opened_again(descriptor: int, writable: bool) -> int:
    """The same memory under a fresh descriptor, which shares no position and no flags with ours.

    Raises:
        AccessDenied: This process has changed its user since it made the memory, or has no /proc.
    """
    try:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError as error:
        raise AccessDenied(f"cannot open sealed memory again for another: {error.strerror}") from error


def check(descriptor: int, nbytes: int, writable: bool) -> None:
    """See that what another process passed is what it said, so that nobody can take it from under our mapping.

    Raises:
        Corrupted: No sealed memory, of another size, or not opened for that.
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        raise Corrupted("the owner passed a descriptor of something else than sealed memory") from None
    if seals & SEALS != SEALS:
        raise Corrupted(f"the owner passed memory with seals {seals:#x}; {SEALS:#x} are needed")
    size = os.fstat(descriptor).st_size
    if size != nbytes or nbytes < 1:
        raise Corrupted(f"the owner passed {size} bytes of sealed memory and said {nbytes}")
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if mode != (os.O_RDWR if writable else os.O_RDONLY):
        raise Corrupted(f"the owner passed sealed memory in access mode {mode}, writable was to be {writable}")


def mapped(descriptor: int, nbytes: int, writable: bool) -> _native.Mapping:
    """Map it; the descriptor stays the caller's. Raises OutOfMemory."""
    try:
        return _native.Mapping(descriptor, nbytes, writable)
    except OSError as error:
        raise OutOfMemory(f"cannot map {nbytes} bytes of sealed memory: {error.strerror}", needed=nbytes) from error
