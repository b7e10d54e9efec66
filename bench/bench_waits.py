"""A parked process that waits for one of 64 objects, beside one that waits for a single one.

Measures: P15 from just before set() to the return of wait_any() in the other process, on the one clock they share, ns;
p50 and p99; by turns with one auto-reset event and with 64, of which the last is set: the ratio of the two p50 of one
run. What comes before, entering 64 lines, is not part of the wake; leaving them is. `call` is a poll of 64 that finds
nothing.
Excludes: process start, warm-up (100 wakes). Each wake comes 300 us after the other is seen in line.
Peers: none; nothing in the standard library waits for several objects of shared memory.
"""

import time
from functools import partial
from typing import Any

from bench import machine
from bench.harness import Sample, Settings, Subject, measure_all, need, ours, percentiles
from bench.rows import Bench, Group, judge

ROWS = ("P15",)
MANY = 64
TURNS = 10
GAP_S = 300e-6
COLUMNS = (
    ("ratio", "64/one", 1.0, 3),
    ("ratio:min", "least", 1.0, 3),
    ("ratio:max", "most", 1.0, 3),
    ("one", "one, p50 us", 1e-3, 2),
    ("many", "64, p50 us", 1e-3, 2),
    ("one_p99", "one, p99 us", 1e-3, 2),
    ("many_p99", "64, p99 us", 1e-3, 2),
    ("call", "poll of 64 us", 1e-3, 2),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    results = measure_all("P15 waits", [Subject("shmipc", "ours", measure)], settings)
    bar = partial(judge, "P15", ours=ours(results), against="none")
    row = bar("wake of one that waits for 64 objects, over one", "", key="ratio", at_most=1.5)
    return Bench("bench_waits", __doc__ or "", [row], [Group("P15: waits", COLUMNS, results, "ratio", "")])


class Sleeper:
    """Pins itself, and tells how long after the stamp each of its waits has ended."""

    def __init__(self, cores: set[int]) -> None:
        machine.pin(cores)

    def wait(self, events: list[Any], stamp: Any, count: int) -> list[int]:
        import shmipc

        clock, taken = time.perf_counter_ns, []
        for number in range(count):
            stamp[1] = number
            index = shmipc.wait_any(events)
            taken.append(clock() - int(stamp[0]))
            if index != len(events) - 1:
                raise AssertionError(f"object {index} of {len(events)} was set")
        return taken


def measure(settings: Settings) -> Sample:
    need("shmipc")
    import shmipc

    near_core, far_core = machine.two_cores()
    wakes = settings.count(max(50, round(settings.run_seconds * 2_000 / TURNS)), 10)
    with shmipc.System() as system:
        sleeper = system.spawn(Sleeper, {far_core})
        machine.pin({near_core})
        stamp = shmipc.shared((2,), "int64")  # when it was set, and how many wakes are over
        events = [shmipc.Event(manual_reset=False) for _ in range(MANY)]
        lists = {"one": events[:1], "many": events}
        wake(sleeper, lists["many"], stamp, 100)
        times: dict[str, list[int]] = {"one": [], "many": []}
        for _ in range(TURNS):
            for name, objects in lists.items():
                times[name] += wake(sleeper, objects, stamp, wakes)
        started = time.perf_counter_ns()
        for _ in range(1_000):
            shmipc.select(events, 0)
        call = (time.perf_counter_ns() - started) / 1_000
        one, many = (percentiles(times[name]) for name in lists)
        for event in events:
            event.close()
        return {
            "ratio": many["p50"] / one["p50"],
            "one": one["p50"],
            "many": many["p50"],
            "one_p99": one["p99"],
            "many_p99": many["p99"],
            "call": call,
        }


def wake(sleeper: Any, events: list[Any], stamp: Any, count: int) -> list[int]:
    """Let the sleeper wait so often, and set the last; its times, ns."""
    clock, last = time.perf_counter_ns, events[-1]
    stamp[1] = -1
    waits = sleeper.wait.submit(events, stamp, count)
    for number in range(count):
        while stamp[1] != number or not last.waiting():
            time.sleep(0)
        time.sleep(GAP_S)
        stamp[0] = clock()
        last.set()
    times: list[int] = waits.result(60)
    return times
