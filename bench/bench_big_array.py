"""A 64 MiB ordinary array to a pinned worker, and its sum back.

Measures: P8 call to result, ns, each sum compared; p50, p99 of each run, then their medians over the runs. The block is
warm in both mappings after ten calls; `cold` is the first call of a fresh system, published and not judged. CPU time
and page faults per call of the caller, and of all processes that it has started.
Excludes: process start, and making the array.
Peers: ProcessPoolExecutor over forked workers (pickle through a pipe). Limit: one memcpy between two warm arrays of
one process, and the sum of the copy.
"""

import time
from collections.abc import Callable
from functools import partial

from bench import machine
from bench.harness import FORK, Sample, Settings, Subject, best, limit, measure_all, need, ours, percentiles
from bench.rows import Bench, Group, judge
from bench.tasks import Summer, pin_worker, sum_of

ROWS = ("P8",)
NBYTES = 64 << 20
COLUMNS = (
    ("p50", "p50 ms", 1e-6, 2),
    ("p50:min", "least", 1e-6, 2),
    ("p50:max", "most", 1e-6, 2),
    ("p99", "p99 ms", 1e-6, 2),
    ("cold", "cold ms", 1e-6, 2),
    ("near_cpu", "caller ms/call", 1e-6, 2),
    ("far_cpu", "worker ms/call", 1e-6, 2),
    ("near_faults", "caller faults/call", 1.0, 1),
    ("far_faults", "worker faults/call", 1.0, 1),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    subjects = [
        Subject("shmipc", "ours", measure_ours),
        Subject("ProcessPoolExecutor", "peer", measure_executor, most_repeats=3),
        Subject("memcpy and sum", "limit", measure_memcpy),
    ]
    results = measure_all("P8 64 MiB", subjects, settings)
    figure = partial(judge, "P8", unit="ms", key="p50", factor=1e-6)
    peer = best(results, "p50", highest=False)
    mine, bound = ours(results), limit(results)
    row = figure("64 MiB array, sum back", ours=mine, peer=peer, limit=bound, at_most=1.3, against="limit")
    group = Group("P8: 64 MiB to a worker", COLUMNS, results, "p50", "ms")
    return Bench("bench_big_array", __doc__ or "", [row], [group])


def measure_ours(settings: Settings) -> Sample:
    need("shmipc")
    import numpy as np

    import shmipc

    near_core, far_core = machine.two_cores()
    with shmipc.System() as system:
        ref = system.spawn(Summer, {far_core})
        machine.pin({near_core})
        array = np.ones(NBYTES // 8)
        return _measure(lambda: ref.sum(array), settings, settings.count(10, 2))


def measure_executor(settings: Settings) -> Sample:
    from concurrent.futures import ProcessPoolExecutor

    import numpy as np

    near_core, far_core = machine.two_cores()
    with ProcessPoolExecutor(1, FORK, pin_worker, ({far_core},)) as executor:
        executor.submit(int, 1).result()
        machine.pin({near_core})
        array = np.ones(NBYTES // 8)
        return _measure(lambda: executor.submit(sum_of, array).result(), settings, 1, 5)


def measure_memcpy(settings: Settings) -> Sample:
    import numpy as np

    near_core, _ = machine.two_cores()
    machine.pin({near_core})
    array = np.ones(NBYTES // 8)
    copy = np.empty_like(array)

    def both() -> float:
        np.copyto(copy, array)
        return float(copy.sum())

    return _measure(both, settings, settings.count(10, 2))


def _measure(act: Callable[[], float], settings: Settings, warm: int, most: int = 20) -> Sample:
    clock = time.perf_counter_ns
    samples = []
    started = clock()
    act()
    cold = clock() - started
    for _ in range(warm):
        act()
    calls = settings.count(most, 2)
    spending = machine.Spending()
    for _ in range(calls):
        started = clock()
        total = act()
        samples.append(clock() - started)
        if total != NBYTES // 8:
            raise AssertionError(f"the sum is {total}")
    return {**percentiles(samples), "cold": float(cold), "calls": float(calls), **spending.per(calls)}
