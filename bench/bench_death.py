"""From the SIGKILL of a server to the error at the caller that waits for its answer.

Measures: kill() to `PeerDead` raised in the caller, ms, of a server with less than 64 MiB of private memory; p50, p99
of 40 deaths in a run. Beside it the same with 256 and 512 MiB more, and the slope in ms per GiB: the kernel frees
those pages before a pidfd or a pipe says that the process has ended; ours does not wait for them (Linux 5.16).
Excludes: starting the server and touching its memory; the call is in service before the kill.
Peers: peers/process_death.py, ProcessPoolExecutor, whose every future breaks with the worker. A worker that mp.Pool
loses is never told: its caller waits for ever, so it has no figure.
"""

import os
import signal
import threading
import time
from functools import partial

from bench.harness import Sample, Settings, Subject, best, measure_all, need, ours, percentiles
from bench.peers.process_death import measure_pool_death
from bench.rows import Bench, Group, judge
from bench.tasks import Ballast

ROWS = ("P14",)
DEATHS = 40
SIZES_MIB = (32, 256, 512)  # touched by the server, on top of what its interpreter has
COLUMNS = (
    ("p50", "p50 ms", 1e-6, 2),
    ("p50:min", "least", 1e-6, 2),
    ("p50:max", "most", 1e-6, 2),
    ("p99", "p99 ms", 1e-6, 2),
    ("private", "private MiB", 1.0, 0),
    *((f"p50 {size}", f"+{size} MiB, p50 ms", 1e-6, 2) for size in SIZES_MIB[1:]),
    ("slope", "ms per GiB", 1.0, 1),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    subjects = [
        Subject("shmipc", "ours", measure_deaths, most_repeats=5, limit_seconds=120.0),
        Subject(
            "ProcessPoolExecutor",
            "peer",
            partial(measure_pool_death, SIZES_MIB[0]),
            most_repeats=3,
            limit_seconds=120.0,
        ),
    ]
    results = measure_all("P14 death", subjects, settings)
    mine, peer = ours(results), best(results, "p50", highest=False)
    bar = partial(judge, "P14", unit="ms", ours=mine, factor=1e-6, against="none")
    rows = [
        bar("SIGKILL of a server to the error at its caller, p50", key="p50", peer=peer, at_most=5.0),
        bar("SIGKILL of a server to the error at its caller, p99", key="p99", peer=peer, at_most=20.0),
    ]
    group = Group("P14: SIGKILL of a server to the error at its caller", COLUMNS, results, "p50", "ms")
    return Bench("bench_death", __doc__ or "", rows, [group])


def measure_deaths(settings: Settings) -> Sample:
    """Kill to error, ns, by size; the private memory of the smallest; the slope over memory by least squares."""
    need("shmipc")
    import shmipc

    p50: dict[int, float] = {}
    sample: Sample = {}
    with shmipc.System() as system:
        for size in SIZES_MIB:
            deaths = settings.count(DEATHS if size == SIZES_MIB[0] else DEATHS // 4, 2)
            samples = []
            for _ in range(1 + deaths):
                server = system.spawn(Ballast, size)
                private = server.private_mib()
                future = server.serve.submit()
                threading.Event().wait(0.01)  # until it is served
                pid = shmipc.process(server).pid
                samples.append(kill_and_wait(pid, future))
                shmipc.process(server).join(10.0)
            found = percentiles(samples[1:])
            p50[size] = found["p50"]
            if size == SIZES_MIB[0]:
                if private >= 64:
                    raise AssertionError(f"the server has {private:.0f} MiB of private memory; the row says under 64")
                sample = {**found, "private": private}
    mean_x = sum(p50) / len(p50) / 1024
    mean_y = sum(p50.values()) / len(p50) / 1e6
    over = sum((size / 1024 - mean_x) * (value / 1e6 - mean_y) for size, value in p50.items())
    slope = over / sum((size / 1024 - mean_x) ** 2 for size in p50)
    return {**sample, **{f"p50 {size}": value for size, value in p50.items()}, "slope": slope}


def kill_and_wait(pid: int, future: object) -> int:
    """Nanoseconds from the kill, by a thread beside, to the error in the caller, which waits already."""
    import shmipc

    killed: list[int] = []

    def kill() -> None:
        threading.Event().wait(0.005)
        killed.append(time.perf_counter_ns())
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        future.result(30.0)  # type: ignore[attr-defined]
    except shmipc.PeerDead:
        told = time.perf_counter_ns()
    else:
        raise AssertionError("the killed server has answered")
    killer.join()
    return told - killed[0]
