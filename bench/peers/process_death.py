"""concurrent.futures.ProcessPoolExecutor: from the SIGKILL of its worker to the error at the caller."""

import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from bench.harness import Sample, Settings, percentiles
from bench.tasks import Ballast

_ballast: list[Ballast] = []


def load(size_mib: int) -> int:
    _ballast.append(Ballast(size_mib))
    return os.getpid()


def serve() -> None:
    threading.Event().wait()


def measure_pool_death(size_mib: int, settings: Settings) -> Sample:
    """Kill to error, ns; the pool is broken each time, so each death has a pool of its own."""
    samples = []
    for _ in range(1 + settings.count(20, 2)):
        with ProcessPoolExecutor(1) as pool:
            pid = pool.submit(load, size_mib).result()
            future = pool.submit(serve)
            threading.Event().wait(0.01)
            started = time.perf_counter_ns()
            os.kill(pid, signal.SIGKILL)
            try:
                future.result(30.0)
            except BrokenProcessPool:
                samples.append(time.perf_counter_ns() - started)
    return percentiles(samples[1:])
