"""multiprocessing's three ways to start a process, numpy loaded before the child's first line runs.

Settings: ``fork`` inherits numpy, ``forkserver`` preloads it, ``spawn`` has to import it. The child's reply
comes through a pipe.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from bench.harness import Sample, Settings, need, percentiles

FIRST_STARTS = 20


def measure_start(method: str, actors: int, settings: Settings) -> Sample:
    """Start to first reply, ns, one at a time; then seconds until ``actors`` children have all replied."""
    need("numpy")
    context = _context(method)
    samples = []
    for _ in range(1 + settings.count(FIRST_STARTS, 2)):
        started = time.perf_counter_ns()
        stop = _start(context, 1)
        samples.append(time.perf_counter_ns() - started)
        stop()
    started = time.perf_counter_ns()
    stop = _start(context, actors)
    many_ns = time.perf_counter_ns() - started
    stop()
    return {**percentiles(samples[1:]), "many": float(many_ns), "actors": float(actors)}


def _context(method: str) -> BaseContext:
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["numpy", "bench.peers.process_start"])
    return context


def _start(context: BaseContext, count: int) -> Callable[[], None]:
    pipes, processes = [], []
    for _ in range(count):
        near, far = context.Pipe()
        process = context.Process(target=_greet, args=(far,), daemon=True)  # type: ignore[attr-defined]
        process.start()
        far.close()
        pipes.append(near)
        processes.append(process)
    for k, near in enumerate(pipes):
        near.send(k)
    for k, near in enumerate(pipes):
        if near.recv() != (k, True):
            raise AssertionError("a child answered for another, or had no numpy")

    def stop() -> None:
        for near in pipes:  # told, because a forked sibling may hold the other end open
            near.send(None)
        for process in processes:
            process.join()
        for near in pipes:
            near.close()

    return stop


def _greet(connection: Connection) -> None:
    import numpy  # noqa: F401

    k = connection.recv()
    connection.send((k, "numpy" in sys.modules))
    connection.recv()
