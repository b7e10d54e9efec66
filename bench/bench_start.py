"""From the start of an actor to its first reply, numpy loaded; one, and a hundred.

Measures: spawn() to the first call's answer, ms, one actor at a time, p50, p99, p99.9 of 20 starts; then spawn()
of 100 actors to the answer of the last. The answer says that numpy was loaded when the actor's class was made.
Excludes: the system and its launcher, which are up (one actor was started and answered before); stopping; what the
actor's module imports, which is nothing: each worker imports the module itself (the peers have theirs loaded).
Peers: peers/process_start.py: multiprocessing by fork, by forkserver with numpy preloaded, and by spawn.
"""

import time
from functools import partial

from bench.greeter import Greeter
from bench.harness import Sample, Settings, Subject, best, measure_all, need, ours, percentiles
from bench.peers.process_start import FIRST_STARTS, measure_start
from bench.rows import Bench, Group, judge

ROWS = ("P13",)
ACTORS = 100
COLUMNS = (
    ("p50", "p50 ms", 1e-6, 2),
    ("p50:min", "least", 1e-6, 2),
    ("p50:max", "most", 1e-6, 2),
    ("p99", "p99 ms", 1e-6, 2),
    ("many", "many, s", 1e-9, 3),
    ("many:min", "least", 1e-9, 3),
    ("many:max", "most", 1e-9, 3),
    ("actors", "many is", 1.0, 0),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    actors = settings.count(ACTORS, 5)
    subjects = [
        Subject("shmipc", "ours", partial(measure_actors, actors)),
        Subject("multiprocessing fork", "peer", partial(measure_start, "fork", actors)),
        Subject("multiprocessing forkserver", "peer", partial(measure_start, "forkserver", actors), most_repeats=3),
        Subject(
            "multiprocessing spawn",
            "peer",
            partial(measure_start, "spawn", min(actors, 20)),
            most_repeats=1,
            limit_seconds=180.0,
        ),
    ]
    results = measure_all("P13 start", subjects, settings)
    mine = ours(results)
    rows = [
        judge(
            "P13",
            "actor start to first reply",
            "ms",
            ours=mine,
            key="p50",
            factor=1e-6,
            peer=best(results, "p50", highest=False),
            at_most=10.0,
            against="none",
        ),
        judge(
            "P13",
            f"{actors} actors started and answering",
            "s",
            ours=mine,
            key="many",
            factor=1e-9,
            peer=best(results, "many", highest=False),
            at_most=2.0,
            against="none",
        ),
    ]
    group = Group("P13: start to first reply, numpy loaded", COLUMNS, results, "p50", "ms")
    return Bench("bench_start", __doc__ or "", rows, [group])


def measure_actors(actors: int, settings: Settings) -> Sample:
    """Start to first reply, ns, one at a time; then nanoseconds until ``actors`` of them have all answered."""
    need("shmipc")
    import shmipc

    samples = []
    with shmipc.System() as system:
        for k in range(1 + settings.count(FIRST_STARTS, 2)):
            started = time.perf_counter_ns()
            ref = system.spawn(Greeter)
            answer = ref.greet(k)
            samples.append(time.perf_counter_ns() - started)
            _check(answer, k)
            shmipc.process(ref).stop()
        started = time.perf_counter_ns()
        refs = [system.spawn(Greeter) for _ in range(actors)]
        answers = [ref.greet(k) for k, ref in enumerate(refs)]
        many_ns = time.perf_counter_ns() - started
        for k, answer in enumerate(answers):
            _check(answer, k)
    return {**percentiles(samples[1:]), "many": float(many_ns), "actors": float(actors)}


def _check(answer: tuple[int, bool], k: int) -> None:
    if answer != (k, True):
        raise AssertionError(f"the actor answered {answer}, not {(k, True)}: another's answer, or no numpy")
