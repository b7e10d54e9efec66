"""A fresh interpreter that starts idle processes of one kind and tells what memory they hold; for bench_memory.py.

``python -m bench.idle KIND COUNT SECONDS``: KIND is "actor", or how multiprocessing starts a process. What a process
of the method spawn need not import again is imported late.
"""

import json
import os
import sys
import time
from collections.abc import Callable


def main(kind: str, count: int, seconds: float) -> dict[str, float]:
    """Bytes: of one process the median, by kind of page; and of all that was started, shared out over these."""
    import statistics

    import numpy  # noqa: F401

    import shmipc  # noqa: F401
    from bench import machine
    from bench.peers import idle_child

    before = machine.memory_of(os.getpid())["Pss"]
    pids, stop = start_actors(count) if kind == "actor" else idle_child.start(kind, count)
    time.sleep(seconds)
    found = [machine.memory_of(pid) for pid in pids]
    family = machine.family()
    whole = sum(machine.memory_of(pid)["Pss"] for pid in [os.getpid(), *family]) - before
    stop()
    return {
        "pss": statistics.median(memory["Pss"] for memory in found),
        "private": statistics.median(memory["Private_Dirty"] + memory["Private_Clean"] for memory in found),
        "whole": whole / count,
        "helpers": float(len(family) - count),
    }


def start_actors(count: int) -> tuple[list[int], Callable[[], None]]:
    """Their pids, and what stops them; all have answered."""
    import shmipc
    from bench.greeter import Greeter

    system = shmipc.System()
    refs = [system.spawn(Greeter) for _ in range(count)]
    for k, ref in enumerate(refs):
        if ref.greet(k) != (k, True):
            raise AssertionError("an actor answered for another, or had no numpy")
    return [shmipc.process(ref).pid for ref in refs], system.shutdown


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
