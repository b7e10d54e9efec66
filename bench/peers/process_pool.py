"""concurrent.futures.ProcessPoolExecutor over forked workers, chunks of one."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from bench.harness import FORK
from bench.tasks import Adder, identity, pin_worker
from bench.workers import Workers


class ProcessPool(Workers):
    def __init__(self, count: int, cores: set[int] | None = None) -> None:
        super().__init__(count, cores)
        if cores is None:
            self.executor = ProcessPoolExecutor(count, FORK)
        else:
            self.executor = ProcessPoolExecutor(count, FORK, pin_worker, (cores,))
        self.adder = Adder()
        list(self.executor.map(identity, range(count)))

    def call(self, k: int) -> int:
        return self.executor.submit(self.adder.add, k).result()

    def submit(self, k: int) -> Callable[[], int]:
        return self.executor.submit(self.adder.add, k).result

    def map(self, items: Iterable[int]) -> Iterator[int]:
        return self.executor.map(identity, items, chunksize=1)

    def pids(self) -> list[int]:
        return [child.pid or 0 for child in multiprocessing.active_children()]

    def close(self) -> None:
        self.executor.shutdown()
