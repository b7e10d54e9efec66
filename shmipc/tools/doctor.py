"""``shmipc doctor``: does this machine have what shmipc needs, and is anything in its way?"""

import ctypes
import errno
import fcntl
import glob
import mmap
import os
import platform
import re
import resource
import socket
import struct
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shmipc import _native
from shmipc.base.cores import core_count
from shmipc.memory import segments
from shmipc.tools.looks import looks
from shmipc.tools.ps import size

LEAST_FREE = 32 << 20
LEAST_FILES = 256
FUTEX_WAITV = 449
MADV_POPULATE_WRITE = 23

Check = dict[str, Any]


def check(name: str, value: object, ok: bool = True, hint: str = "") -> Check:
    """One line: what was looked at, what was found, whether that is fine, and what to do when it is not."""
    return {"name": name, "value": value, "ok": ok, "hint": "" if ok else hint}


def version_of_shmipc() -> str:
    try:
        return version("shmipc")
    except PackageNotFoundError:
        return "not installed"


def versions() -> list[Check]:
    return [
        check("shmipc", version_of_shmipc()),
        check("layout", f"{_native.LAYOUT & (1 << 64) - 1:016x}"),
        check("test build", bool(_native.KILL_POINTS), not _native.KILL_POINTS, "kill points are for tests only"),
        check("python", f"{platform.python_implementation()} {platform.python_version()}"),
        check("kernel", platform.release()),
        check("C library", " ".join(platform.libc_ver()) or "unknown"),
        check("cores", core_count()),
    ]


def memory() -> list[Check]:
    try:
        found = os.statvfs(segments.SHM)
    except OSError as error:
        return [check("/dev/shm", error.strerror, False, "mount a tmpfs there")]
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    hint = "make it larger (docker run --shm-size=1g), or remove what lies there"
    lines = [
        check("/dev/shm size", size(total)),
        check("/dev/shm free", size(free), free >= LEAST_FREE, hint),
        check("/dev/shm files free", found.f_favail, found.f_favail >= 64, "the mount's nr_inodes is used up"),
        check("/dev/shm type", *file_system(segments.SHM)),
    ]
    limit = cgroup_limit()
    if limit is not None:
        lines.append(
            check(
                "cgroup memory limit",
                size(limit),
                limit >= LEAST_FREE,
                "shared memory counts towards it: beyond it the kernel kills",
            )
        )
    return lines


def file_system(path: Path) -> tuple[str, bool, str]:
    kind = "unknown"
    try:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            fields = line.split()
            if len(fields) > 2 and fields[1] == str(path):
                kind = fields[2]
    except OSError:
        pass
    return kind, kind in ("tmpfs", "unknown"), "on another file system shared memory goes through a disk"


def cgroup_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def limits() -> list[Check]:
    lines = []
    for name, number, least in (
        ("open files", resource.RLIMIT_NOFILE, LEAST_FILES),
        ("processes", resource.RLIMIT_NPROC, 64),
        ("file size", resource.RLIMIT_FSIZE, 1 << 40),
        ("address space", resource.RLIMIT_AS, 1 << 42),
    ):
        soft, _ = resource.getrlimit(number)
        endless = soft == resource.RLIM_INFINITY
        hint = f"raise it with ulimit; {least} is little enough"
        lines.append(check(f"limit on {name}", "none" if endless else soft, endless or soft >= least, hint))
    try:
        mode = int(Path("/proc/sys/vm/overcommit_memory").read_text())
    except (OSError, ValueError):
        return lines
    hint = "address space that is only reserved counts; set vm.overcommit_memory to 0 or 1"
    return [*lines, check("overcommit mode", mode, mode != 2, hint)]


# --- the kernel ------------------------------------------------------------------------------------------------


def works(act: Callable[[], object]) -> bool:
    try:
        act()
    except (OSError, AttributeError, ValueError):
        return False
    return True


def try_pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


def try_memfd() -> None:
    os.close(os.memfd_create("shmipc-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))


def try_lock() -> None:
    descriptor = os.memfd_create("shmipc-doctor", os.MFD_CLOEXEC)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(segments.LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    finally:
        os.close(descriptor)


def try_populate() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as pages:
        pages.madvise(MADV_POPULATE_WRITE)


def try_futex_waitv() -> None:
    """Waiting for nothing is refused as such, not as unknown."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall(ctypes.c_long(FUTEX_WAITV), None, 0, 0, None, 0)
    if ctypes.get_errno() == errno.ENOSYS:
        raise OSError(errno.ENOSYS, "futex_waitv")


def try_semaphore() -> None:
    ctypes.CDLL(None).sem_clockwait  # noqa: B018  # glibc 2.30


def try_door() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind("")
        if len(door.getsockname()) != 6:
            raise OSError(errno.ENOSYS, "autobind")


def kernel() -> list[Check]:
    needed = [
        ("pidfd_open", try_pidfd, "needs Linux 5.3; a sandbox may forbid it"),
        ("locks of open files", try_lock, "needs Linux 3.15"),
        ("sem_clockwait", try_semaphore, "needs glibc 2.30"),
        ("memfd_create", try_memfd, "shmipc stack shows nothing of members that hold the interpreter's lock"),
        ("abstract sockets", try_door, "shmipc stack cannot ask"),
    ]
    useful = [("futex_waitv", try_futex_waitv), ("MADV_POPULATE_WRITE", try_populate)]
    lines = []
    for name, act, hint in needed:
        has = works(act)
        lines.append(check(name, "yes" if has else "no", has, hint))
    return lines + [check(name, "yes" if works(optional) else "no, and not needed") for name, optional in useful]


# --- what others do --------------------------------------------------------------------------------------------


def remove_ipc(roots: tuple[str, ...] = ("/usr/lib", "/etc")) -> str:
    """What logind is told about the shared memory of users who log out; its own default is yes."""
    value = "yes"
    for root in roots:
        files = [f"{root}/systemd/logind.conf", *sorted(glob.glob(f"{root}/systemd/logind.conf.d/*.conf"))]
        for path in files:
            try:
                text = Path(path).read_text()
            except OSError:
                continue
            for match in re.finditer(r"^\s*RemoveIPC\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE):
                value = match[1].lower()
    return value


def logind() -> Check:
    name = "RemoveIPC of logind"
    if not os.path.isdir("/run/systemd/seats"):
        return check(name, "no logind here")
    removes = remove_ipc() in ("yes", "true", "1", "on")
    regular = os.getuid() >= 1000
    lingers = regular and os.path.exists(f"/var/lib/systemd/linger/{user_name()}")
    hint = "files in /dev/shm go when you log out, under running programs: loginctl enable-linger, or RemoveIPC=no"
    value = "yes" if removes else "no"
    if removes and not regular:
        value += ", but not for system users"
    return check(name, value, not removes or not regular or lingers, hint)


def user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def systems() -> list[Check]:
    found = looks()
    dead = [look for look in found if look.state == "dead"]
    other = [look for look in found if look.state not in ("alive", "dead")]
    lines = [
        check("living systems", len(found) - len(dead) - len(other)),
        check(
            "dead systems",
            f"{len(dead)}, {size(sum(look.bytes for look in dead))}" if dead else 0,
            not dead,
            "shmipc gc removes what they have left; so does the next start",
        ),
    ]
    for look in other:
        lines.append(check(f"system {look.name}", look.state, False, "no version of shmipc here can read it"))
    return lines


def run() -> tuple[dict[str, Any], bool]:
    """What is to be printed, and whether anything is not fine."""
    checks = [*versions(), *memory(), *limits(), *kernel(), logind(), *systems()]
    found = [entry for entry in checks if not entry["ok"]]
    return {"fine": not found, "platform": sys.platform, "checks": checks}, bool(found)


def as_text(report: dict[str, Any]) -> str:
    lines = []
    for entry in report["checks"]:
        mark = "ok  " if entry["ok"] else "LOOK"
        lines.append(f"{mark} {entry['name']:<22} {entry['value']}")
        if entry["hint"]:
            lines.append(f"     {entry['hint']}")
    return "\n".join(lines)
