"""An ordered map of the empty task over a pool with one worker per core, chunks of one.

Measures: first submit to last result, tasks per second, each result compared; CPU time per task of the caller
and of all workers together. Nothing is pinned: the pool shares the cores with its caller, as it does in use.
Excludes: process start and warm-up (2_000 tasks).
Peers: peers/mp_pool.py, peers/process_pool.py.
"""

from functools import partial

from bench.harness import Settings, Subject, measure_all, ours
from bench.ours import PoolWorkers
from bench.peers.mp_pool import MpPool
from bench.peers.process_pool import ProcessPool
from bench.rows import Bench, Group, judge
from bench.workers import measure_map

ROWS = ("P7",)
COLUMNS = (
    ("rate", "k/s", 1e-3, 1),
    ("rate:min", "least", 1e-3, 1),
    ("rate:max", "most", 1e-3, 1),
    ("near_cpu", "caller us/task", 1e-3, 2),
    ("far_cpu", "workers us/task", 1e-3, 2),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    subjects = [
        Subject("shmipc pool.map", "ours", partial(measure_map, PoolWorkers)),
        Subject("mp.Pool.imap", "peer", partial(measure_map, MpPool)),
        Subject("ProcessPoolExecutor.map", "peer", partial(measure_map, ProcessPool)),
    ]
    results = measure_all("P7 pool map", subjects, settings)
    imap = next(measured for measured in results if measured.subject.name == "mp.Pool.imap")
    row = judge(
        "P7",
        "pool.map, chunk 1, empty task",
        "k/s",
        ours=ours(results),
        key="rate",
        factor=1e-3,
        peer=imap,
        at_least=8.0,
        note="the row names mp.Pool.imap",
    )
    group = Group("P7: ordered map, chunk 1, empty task", COLUMNS, results, "rate", "k/s")
    return Bench("bench_pool", __doc__ or "", [row], [group])
