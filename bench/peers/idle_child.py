"""multiprocessing: children that have imported numpy and shmipc, have answered once, and wait in a pipe.

Settings: ``fork`` inherits the imports, ``forkserver`` preloads them, ``spawn`` makes them anew in each child.
"""

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection


def start(method: str, count: int) -> tuple[list[int], Callable[[], None]]:
    """Their pids, and what stops them; all have answered."""
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["numpy", "shmipc", __name__])
    pipes, processes = [], []
    for _ in range(count):
        near, far = context.Pipe()
        process = context.Process(target=_idle, args=(far,), daemon=True)  # type: ignore[attr-defined]
        process.start()
        far.close()
        pipes.append(near)
        processes.append(process)
    for k, near in enumerate(pipes):
        near.send(k)
        if near.recv() != (k, True):
            raise AssertionError("a child answered for another, or had no numpy")

    def stop() -> None:
        for near in pipes:  # told, because a forked sibling may hold the other end open
            near.send(None)
        for process in processes:
            process.join()

    return [process.pid for process in processes], stop


def _idle(connection: Connection) -> None:
    import numpy  # noqa: F401

    import shmipc  # noqa: F401

    connection.send((connection.recv(), {"numpy", "shmipc"} <= sys.modules.keys()))
    connection.recv()
