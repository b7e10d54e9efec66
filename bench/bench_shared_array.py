"""A call with a shared array of 4 KiB to 1 GiB, beside a call without an argument.

Measures: P9 call to result, ns, one outstanding, both sides busy; p50 for each size, the sizes taken in turn within a
run; `extra` is the largest of them less the empty call's. The worker answers with the array's length, which is
compared: it does not read the array, which is the same work for any size. CPU time and page faults of a call, of all
sizes together, of the caller and of the worker.
Excludes: process start, making and filling the arrays, 100 calls of each.
Peers: none that hands over a view; Ray's put and call is in the specification.
"""

import os
import time

from bench import machine
from bench.harness import Sample, Settings, Subject, measure_all, need, ours, percentiles
from bench.rows import Bench, Group, judge
from bench.tasks import Summer

ROWS = ("P9",)
SIZES = {"4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20, "64 MiB": 64 << 20, "1 GiB": 1 << 30}
COLUMNS = (
    ("empty", "empty us", 1e-3, 2),
    *((size, f"{size} us", 1e-3, 2) for size in SIZES),
    ("extra", "extra us", 1e-3, 2),
    ("extra:min", "least", 1e-3, 2),
    ("extra:max", "most", 1e-3, 2),
    ("near_cpu", "caller us/call", 1e-3, 2),
    ("far_cpu", "worker us/call", 1e-3, 2),
    ("near_faults", "caller faults/call", 1.0, 3),
    ("far_faults", "worker faults/call", 1.0, 3),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    results = measure_all("P9 shared array", [Subject("shmipc", "ours", measure)], settings)
    row = judge(
        "P9",
        "shared array of any size, more than an empty call",
        "us",
        ours=ours(results),
        key="extra",
        factor=1e-3,
        at_most=20.0,
        against="none",
    )
    group = Group("P9: a call by size", COLUMNS, results, "extra", "us")
    return Bench("bench_shared_array", __doc__ or "", [row], [group])


def measure(settings: Settings) -> Sample:
    need("shmipc")
    import numpy as np

    import shmipc

    near_core, far_core = machine.two_cores()
    found = os.statvfs("/dev/shm")
    room = found.f_bavail * found.f_frsize // 2
    with shmipc.System() as system:
        ref = system.spawn(Summer, {far_core})
        machine.pin({near_core})
        arrays = {size: shmipc.empty(n, np.uint8) for size, n in SIZES.items() if 2 * n < room}
        for array in arrays.values():
            array[::4096] = 1
        samples: dict[str, list[int]] = {name: [] for name in ("empty", *arrays)}
        clock = time.perf_counter_ns
        warm, calls = settings.count(100, 5), settings.count(2_000, 20)
        for turn in range(warm + calls):
            if turn == warm:
                spending = machine.Spending()
            for name, kept in samples.items():
                started = clock()
                answer = ref.length(arrays[name]) if name != "empty" else ref.nothing()
                took = clock() - started
                if name != "empty" and answer != SIZES[name]:
                    raise AssertionError(f"the length is {answer}")
                if turn >= warm:
                    kept.append(took)
        spent = spending.per(calls * len(samples))
        medians = {name: percentiles(kept)["p50"] for name, kept in samples.items()}
        extra = max(medians[name] for name in arrays) - medians["empty"]
        return {**medians, "extra": extra, "calls": float(calls), **spent}
