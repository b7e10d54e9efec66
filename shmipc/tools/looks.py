"""What there is of this user's systems, seen by one who is no member: nothing here writes shared memory.

A look works on a system that is stuck or half dead: it waits for nobody, and what it reads it copies first.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shmipc import _native
from shmipc.base.errors import NotFound, ShmipcError
from shmipc.base.limits import LIMITS
from shmipc.memory import segments


@dataclass(frozen=True)
class Look:
    """One system at one moment.

    Attributes:
        name: Its name.
        state: alive, dead (its files are left), half-made, other-layout, corrupted.
        bytes: What its files take of /dev/shm.
        header: Counters of the whole system; empty when it cannot be read.
        members: A record for each process; see `_native.Observer.members`, with ``process``, the operating
            system's word for its state.
        mailboxes: A record for each open mailbox.
    """

    name: str
    state: str
    bytes: int
    header: dict[str, Any] = field(default_factory=dict)
    members: list[dict[str, Any]] = field(default_factory=list)
    mailboxes: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def reading(path: Path) -> Iterator[int | None]:
    """A descriptor of the file for reading; None when there is none, or it is not ours to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def file_bytes(paths: segments.Paths) -> int:
    """What the two files take of memory."""
    total = 0
    for path in (paths.segment, paths.life):
        try:
            total += os.stat(path, follow_symlinks=False).st_blocks * 512
        except OSError:
            pass  # it has gone
    return total


def look_at(name: str) -> Look:
    """Look at a system; raises NotFound when it has no files."""
    paths = segments.Paths.of(name)
    with reading(paths.segment) as segment, reading(paths.life) as life:
        if segment is None and life is None:
            raise NotFound(f"there is no system {name!r}")
        locked = life is not None and _native.life_locked(life, LIMITS.max_members)
        state, observer = observe(segment)
    if observer is None:
        return Look(name, state if locked or state != "half-made" else "dead", file_bytes(paths))
    members = [with_process(member) for member in observer.members()]
    alive = locked or any(member["process"] not in ("ended", "not started") for member in members)
    return Look(name, "alive" if alive else "dead", file_bytes(paths), observer.header(), members, observer.mailboxes())


def observe(segment: int | None) -> tuple[str, _native.Observer | None]:
    if segment is None:
        return "half-made", None
    try:
        return "ready", _native.Observer(segment)
    except NotFound:
        return "half-made", None
    except ShmipcError as error:
        return ("other-layout" if type(error).__name__ == "LayoutMismatch" else "corrupted"), None


def with_process(member: dict[str, Any]) -> dict[str, Any]:
    """The record with the operating system's word for the process."""
    if member["pid_namespace"] != pid_namespace():
        state = "elsewhere"
    elif member["pid"] <= 0:
        state = "not started"
    else:
        state = _native.process_state(member["pid"], member["start_time"])
    return member | {"process": state}


def pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def looks(names: list[str] | None = None) -> list[Look]:
    """The named systems, or all of this user and namespace; raises NotFound for a name without files."""
    if names:
        return [look_at(segments.check_name("system name", name)) for name in names]
    found = []
    for name in segments.system_names():
        try:
            found.append(look_at(name))
        except NotFound:
            continue  # it has ended meanwhile
    return found


def label(member: dict[str, Any] | None) -> str:
    if member is None:
        return "nobody known"
    return f"{member['pid']} ({member['name']})" if member["name"] else str(member["pid"])
