"""What an idle actor costs in memory, beside an idle multiprocessing child with the same imports.

Measures: P17 PSS of a process that has answered once and waits, MiB, numpy and shmipc imported on both sides: the only
one, and the median of ten. Beside it its private pages alone, and everything that was started, with what the caller
grew by, shared out over the ten (`whole`); `helpers` counts processes that are not the ten: zygote, fork server,
resource tracker. All as /proc/PID/smaps_rollup says. CPU time is of an idle process: P3.
Excludes: the caller, which is a fresh interpreter, so that nothing is shared with the bench; a spare child of the
zygote, which goes ten seconds after the last start.
Peers: peers/idle_child.py: multiprocessing by fork, which shares most with its caller, by forkserver and by spawn.
"""

import json
import subprocess
import sys
from functools import partial

from bench import machine
from bench.harness import Sample, Settings, Subject, best, measure_all, need, ours
from bench.rows import Bench, Group, judge

ROWS = ("P17",)
MANY = 10
SPARE_GONE_S = 12.0
SETTLED_S = 1.0
MIB = 2.0**-20
COLUMNS = (
    ("pss", "PSS of one of ten, MiB", MIB, 2),
    ("pss:min", "least", MIB, 2),
    ("pss:max", "most", MIB, 2),
    ("private", "private MiB", MIB, 2),
    ("whole", "whole MiB", MIB, 2),
    ("helpers", "helpers", 1.0, 0),
    ("alone pss", "the only one, MiB", MIB, 2),
    ("alone private", "private MiB", MIB, 2),
    ("alone whole", "whole MiB", MIB, 2),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    subjects = [
        Subject("shmipc", "ours", partial(measure_idle, "actor", SPARE_GONE_S), most_repeats=3),
        *(
            Subject(f"multiprocessing {method}", "peer", partial(measure_idle, method, SETTLED_S), most_repeats=3)
            for method in ("fork", "forkserver", "spawn")
        ),
    ]
    results = measure_all("P17 memory", subjects, settings)
    bar = partial(judge, "P17", unit="MiB", ours=ours(results), factor=MIB, at_most=1.3)
    rows = [
        bar("PSS of an idle actor, the only one", key="alone pss", peer=best(results, "alone pss", highest=False)),
        bar(f"PSS of an idle actor, one of {MANY}", key="pss", peer=best(results, "pss", highest=False)),
    ]
    return Bench("bench_memory", __doc__ or "", rows, [Group("P17: idle processes", COLUMNS, results, "pss", "MiB")])


def measure_idle(kind: str, seconds: float, settings: Settings) -> Sample:
    """Bytes, by kind of page, of one of MANY and of one alone."""
    need("shmipc")
    idle_seconds = 0.1 if settings.quick else seconds
    alone = _ask(kind, 1, idle_seconds)
    return {**_ask(kind, MANY, idle_seconds), **{f"alone {name}": value for name, value in alone.items()}}


def _ask(kind: str, count: int, seconds: float) -> Sample:
    command = (sys.executable, "-m", "bench.idle", kind, str(count), str(seconds))
    done = subprocess.run(command, cwd=machine.REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{kind}: {done.stderr}")
    sample: Sample = json.loads(done.stdout)
    return sample
