"""Calls of one method with one argument on one pinned worker: one outstanding, and a thousand.

Measures: P5 call to result, ns, each result compared; p50, p99, p99.9 of each run, then their medians over the
runs; with the worker busy, and parked (300 us between calls, as in bench_round_trip.py). P6 calls per second by
submit with 1_000 outstanding. CPU time per call of both processes.
Excludes: process start and warm-up (1_000 calls; 100 with gaps; 2_000 by submit); the gaps.
Peers: peers/process_pool.py, peers/mp_pool.py, peers/mp_pipe.py (a hand-written loop around a pipe); limit:
limits/semaphore_trips.c, the parked case only.
"""

from functools import partial

from bench.channel import GAP_US, Gap
from bench.harness import Role, Settings, Subject, best, limit, measure_all, ours
from bench.limits.semaphores import measure_semaphore_trips
from bench.ours import ActorWorkers
from bench.peers.mp_pipe import PipeServer
from bench.peers.mp_pool import MpPool
from bench.peers.process_pool import ProcessPool
from bench.rows import Bench, Group, Row, judge
from bench.workers import Workers, measure_call, measure_submit

ROWS = ("P5", "P6")
CALL_COLUMNS = (
    ("p50", "p50 us", 1e-3, 3),
    ("p50:min", "least", 1e-3, 3),
    ("p50:max", "most", 1e-3, 3),
    ("p99", "p99 us", 1e-3, 2),
    ("p99.9", "p99.9 us", 1e-3, 2),
    ("near_cpu", "caller us/call", 1e-3, 2),
    ("far_cpu", "worker us/call", 1e-3, 2),
    ("near_parks", "caller parks/call", 1.0, 3),
    ("far_parks", "worker parks/call", 1.0, 3),
)
SUBMIT_COLUMNS = (
    ("rate", "k/s", 1e-3, 1),
    ("rate:min", "least", 1e-3, 1),
    ("rate:max", "most", 1e-3, 1),
    ("near_cpu", "caller us/call", 1e-3, 2),
    ("far_cpu", "worker us/call", 1e-3, 2),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    rows: list[Row] = []
    groups: list[Group] = []
    if "P5" in wanted:
        results = measure_all("P5 call busy", _call_subjects("none"), settings)
        figure = partial(judge, "P5", unit="us", key="p50", factor=1e-3)
        peer = best(results, "p50", highest=False)
        rows.append(figure("call, busy", ours=ours(results), peer=peer, at_most=5.0, against="none"))
        groups.append(Group("P5: call, one outstanding, busy", CALL_COLUMNS, results, "p50", "us"))
        for gap in ("busy", "sleep"):
            results = measure_all(f"P5 call parked, caller {gap}", _call_subjects(gap), settings)
            peer = best(results, "p50", highest=False)
            work = f"call, worker parked, caller {'asleep' if gap == 'sleep' else 'busy'} between"
            mine, bound = ours(results), limit(results)
            rows.append(figure(work, ours=mine, peer=peer, limit=bound, at_most=1.3, against="limit"))
            title = f"P5: call, one outstanding, worker parked; caller {gap} for {GAP_US} us between calls"
            groups.append(Group(title, CALL_COLUMNS, results, "p50", "us"))
    if "P6" in wanted:
        results = measure_all("P6 submit", _submit_subjects(), settings)
        peer = best(results, "rate", highest=True)
        rows.append(
            judge(
                "P6",
                "calls by submit, 1 000 outstanding",
                "k/s",
                ours=ours(results),
                key="rate",
                factor=1e-3,
                peer=peer,
                at_least=300.0,
                against="none",
            )
        )
        groups.append(Group("P6: calls by submit, 1 000 outstanding", SUBMIT_COLUMNS, results, "rate", "k/s"))
    return Bench("bench_call", __doc__ or "", rows, groups)


def _call_subjects(gap: Gap) -> list[Subject]:
    def subject(name: str, role: Role, workers: type[Workers]) -> Subject:
        return Subject(name, role, partial(measure_call, workers, gap=gap))

    subjects = [
        subject("shmipc", "ours", ActorWorkers),
        subject("ProcessPoolExecutor", "peer", ProcessPool),
        subject("mp.Pool", "peer", MpPool),
        subject("mp.Pipe loop", "peer", PipeServer),
    ]
    if gap != "none":
        subjects.append(Subject("two semaphores in C", "limit", partial(measure_semaphore_trips, gap=gap)))
    return subjects


def _submit_subjects() -> list[Subject]:
    return [
        Subject("shmipc", "ours", partial(measure_submit, ActorWorkers)),
        Subject("ProcessPoolExecutor", "peer", partial(measure_submit, ProcessPool)),
        Subject("mp.Pool", "peer", partial(measure_submit, MpPool)),
    ]
