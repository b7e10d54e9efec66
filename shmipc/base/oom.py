"""Kills by the kernel's out-of-memory killer, as the memory cgroup of this process counts them: a hint, no proof.

The kernel says how many processes of a cgroup it has killed, not which. So when a process was ended by a SIGKILL that
this library did not send, and the count has grown a moment ago, that was perhaps why.

Source: cgroup v2 ``memory.events``, v1 ``memory.oom_control``.
"""

import os
import time
from pathlib import Path

HINT = "the out-of-memory killer has ended a process of this cgroup, perhaps this one"
FILE_BYTES = 4096
FRESH_SECONDS = 5.0  # how long after it was seen a kill may explain a death


def counter_file(mount: Path, own: Path) -> Path | None:
    """The file that counts the kills in the cgroup of this process; None when there is no memory controller.

    Args:
        mount: Where cgroups are mounted, ``/sys/fs/cgroup``.
        own: Of which cgroups this process is, ``/proc/self/cgroup``.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    places = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inside = path.lstrip("/")
        if "memory" in controllers.split(","):
            folders = [mount / controllers, mount / "memory"]
            places += [folder / part / "memory.oom_control" for folder in folders for part in (inside, "")]
        elif not controllers:  # a container may have its cgroup as the root of its mount
            folders = [mount, mount / "unified"]
            places += [folder / part / "memory.events" for folder in folders for part in (inside, "")]
    return next((place for place in places if place.is_file()), None)


def count_in(file: Path) -> int | None:
    """The count in such a file; None when it has none."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, FILE_BYTES)
        finally:
            os.close(descriptor)
        for line in content.splitlines():
            word, _, number = line.partition(b" ")
            if word == b"oom_kill":
                return int(number)
    except (OSError, ValueError):
        pass
    return None


class Kills:
    """The kills since this process has begun to look."""

    def __init__(self, mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        self.mount = mount
        self.own = own
        self.file: Path | None = None
        self.pid = 0
        self.is_begun = False  # by the process that this one was forked from
        self.seen: int | None = None
        self.fresh = 0
        self.fresh_until = 0.0

    def begin(self) -> None:
        """Count from now on; nothing when this process counts already."""
        if self.pid == os.getpid():
            return
        self.pid = os.getpid()
        if not self.is_begun:
            self.find()
            self.count()
        self.is_begun = False
        self.fresh = 0

    def begin_for_child(self) -> None:
        """A child that is about to be forked counts from now on, in this process's cgroup. The file is found."""
        self.count()
        self.is_begun = True

    def count(self) -> None:
        self.seen = count_in(self.file) if self.file is not None else None

    def find(self) -> None:
        self.file = counter_file(self.mount, self.own)

    def claim(self) -> bool:
        """May a death that was just learnt of have been such a kill? Each kill explains one death."""
        self.begin()
        count = count_in(self.file) if self.file is not None else None
        now = time.monotonic()
        if count is None or self.seen is None:
            return False
        if now > self.fresh_until:
            self.fresh = 0
        if count > self.seen:
            self.fresh += count - self.seen
            self.fresh_until = now + FRESH_SECONDS
        self.seen = count
        if self.fresh <= 0:
            return False
        self.fresh -= 1
        return True


kills = Kills()
