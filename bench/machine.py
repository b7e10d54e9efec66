"""What machine this is, where processes are pinned, and how much CPU they used."""

import contextlib
import os
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent


class Usage(NamedTuple):
    """CPU time of the calling process, all its threads, since it began.

    Args:
        cpu_ns: User and system time together, nanoseconds.
        parks: Voluntary context switches: how often a thread gave its core up to wait.
        faults: Page faults, those without disk and those with.
    """

    cpu_ns: int
    parks: int
    faults: int

    def since(self, before: "Usage") -> "Usage":
        return Usage(self.cpu_ns - before.cpu_ns, self.parks - before.parks, self.faults - before.faults)


def usage() -> Usage:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(round((spent.ru_utime + spent.ru_stime) * 1e9), spent.ru_nvcsw, spent.ru_minflt + spent.ru_majflt)


def cpu_ns_of(pid: int) -> int:
    """CPU time of another process of this user, all threads, in nanoseconds."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # clock_getcpuclockid(3) makes the same number


def family() -> list[int]:
    """Every process that descends from this one and has not ended."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(name)] = int(_stat(int(name))[1])
    found = {os.getpid()}
    while added := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= added
    return sorted(found - {os.getpid()})


class Spending:
    """What this process, and all that descend from it now, spend from here on."""

    def __init__(self) -> None:
        self.far = _usage_of(family())
        self.near = usage()

    def per(self, count: int) -> dict[str, float]:
        """CPU time, ns, and page faults of this process (``near``) and of those (``far``), divided by ``count``.

        One that has ended meanwhile counts no longer.
        """
        near = usage().since(self.near)
        far = [after.since(self.far[pid]) for pid, after in _usage_of(list(self.far)).items()]
        return {
            "near_cpu": near.cpu_ns / count,
            "far_cpu": sum(usage.cpu_ns for usage in far) / count,
            "near_faults": near.faults / count,
            "far_faults": sum(usage.faults for usage in far) / count,
        }


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of a process by kind, as its smaps_rollup says: Rss, Pss, Private_Dirty, ..."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {key: int(value.split()[0]) << 10 for key, _, value in (line.partition(":") for line in lines)}


def two_cores() -> tuple[int, int]:
    """Two cores of this process that are not threads of one another; the same one twice if there is no second."""
    allowed = sorted(os.sched_getaffinity(0))
    first = allowed[0]
    taken = _siblings(first)
    for core in allowed[1:]:
        if core not in taken:
            return first, core
    return first, allowed[-1]


def other_cores(core: int) -> set[int]:
    """Every allowed core but this one; this one if it is the only one."""
    return (os.sched_getaffinity(0) - {core}) or {core}


def pin(cores: set[int]) -> None:
    """Bind every thread of the calling process; threads and children made later follow."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # a thread that ended meanwhile
            os.sched_setaffinity(int(thread), cores)


def describe() -> dict[str, object]:
    """Machine, kernel, CPU and software, as it goes into the JSON: nothing that names its owner."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in _cpu_field("flags").split(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "none",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit() -> dict[str, object]:
    """The commit under test, and whether files that matter differ from it; results do not count."""
    head = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!bench/results")
    return {"commit": head or "unknown", "dirty": bool(changed)}


def _usage_of(pids: list[int]) -> dict[int, Usage]:
    """By pid, without parks; those that have ended are left out."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            found[pid] = Usage(cpu_ns_of(pid), 0, int(fields[7]) + int(fields[9]))
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, the state; the name before them may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _siblings(core: int) -> set[int]:
    text = _read(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    siblings = {core}
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        siblings.update(range(int(low), int(high or low) + 1))
    return siblings


def _cpu_model() -> str:
    return _cpu_field("model name") or platform.machine()


def _cpu_field(name: str) -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(("git", *arguments), cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
