"""A numpy array of ten floats, there and back.

Measures: P10 an array sent through a mailbox and received by the same process, ns, compared; beside it pickled and
unpickled, which a queue would do besides its own work. Mean over 1_000 trips, p50 over the batches of a run.
CPU time and page faults of a trip.
Excludes: 2_000 trips of each.
Peers: pickle 5.
"""

import pickle
import time
from collections.abc import Callable
from typing import Any

from bench import machine
from bench.harness import Sample, Settings, Subject, best, measure_all, need, ours, percentiles
from bench.rows import Bench, Group, judge

ROWS = ("P10",)
COLUMNS = (
    ("p50", "p50 us", 1e-3, 3),
    ("p50:min", "least", 1e-3, 3),
    ("p50:max", "most", 1e-3, 3),
    ("p99", "p99 us", 1e-3, 3),
    ("near_cpu", "CPU us/trip", 1e-3, 3),
    ("near_faults", "faults/trip", 1.0, 3),
)
BATCH, WARM_BATCHES = 1_000, 2


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    subjects = [Subject("shmipc", "ours", measure_ours), Subject("pickle", "peer", measure_pickle)]
    results = measure_all("P10 ten floats", subjects, settings)
    peer = best(results, "p50", highest=False)
    row = judge("P10", "ten floats", "us", ours=ours(results), key="p50", factor=1e-3, peer=peer, at_least=5.0)
    return Bench("bench_small_array", __doc__ or "", [row], [Group("P10: ten floats", COLUMNS, results, "p50", "us")])


def measure_ours(settings: Settings) -> Sample:
    need("shmipc")
    import shmipc

    with shmipc.System(), shmipc.Mailbox.create() as box:

        def trip(array: Any) -> Any:
            box.send(array)
            return box.receive()

        return _measure(trip, settings)


def measure_pickle(settings: Settings) -> Sample:
    return _measure(lambda array: pickle.loads(pickle.dumps(array, 5)), settings)


def _measure(trip: Callable[[Any], Any], settings: Settings) -> Sample:
    import numpy as np

    machine.pin({machine.two_cores()[0]})
    array = np.arange(10.0)
    batch = settings.count(BATCH, 20)
    samples: list[int] = []
    for turn in range(settings.count(32, 4)):
        if turn == WARM_BATCHES:
            before = machine.usage()
        started = time.perf_counter_ns()
        for _ in range(batch):
            got = trip(array)
        took = time.perf_counter_ns() - started
        if got.dtype != array.dtype or got.tolist() != array.tolist():
            raise AssertionError("another array came back")
        if turn >= WARM_BATCHES:
            samples.append(took // batch)
    spent = machine.usage().since(before)
    trips = len(samples) * batch
    return {**percentiles(samples), "near_cpu": spent.cpu_ns / trips, "near_faults": spent.faults / trips}
