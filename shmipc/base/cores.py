"""How many cores this process may use: affinity, and the quota of its control group."""

import functools
import math
import os
from pathlib import Path

# Variables that set the threads of a numeric library when it is loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def core_count() -> int:
    """Cores of this process, at least 1; a quota of 1.5 cores counts as 2."""
    cores = len(os.sched_getaffinity(0))
    quota = group_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


@functools.cache
def group_quota() -> float | None:
    """Cores that the control groups grant (versions 2 and 1), None when they set no limit; looked up once."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += quotas_v2(path)
        elif "cpu" in controllers.split(","):
            limits += quotas_v1(path)
    return min(limits, default=None)


def quotas_v2(path: str) -> list[float]:
    """The quota of a version 2 group and of each group above it."""
    found = []
    for group in [Path(path), *Path(path).parents]:
        try:
            quota, period = Path(f"/sys/fs/cgroup{group}/cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            found.append(int(quota) / int(period))
    return found


def quotas_v1(path: str) -> list[float]:
    """The quota of a version 1 group."""
    found = []
    for folder in (f"/sys/fs/cgroup/cpu{path}", "/sys/fs/cgroup/cpu"):
        try:
            quota = int(Path(folder, "cpu.cfs_quota_us").read_text())
            period = int(Path(folder, "cpu.cfs_period_us").read_text())
        except (OSError, ValueError):
            continue
        if quota > 0 and period > 0:
            found.append(quota / period)
    return found
