"""multiprocessing.Pool: ``apply``, ``apply_async`` and ``imap`` with chunks of one."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator

from bench.harness import FORK
from bench.tasks import Adder, identity, pin_worker
from bench.workers import Workers


class MpPool(Workers):
    def __init__(self, count: int, cores: set[int] | None = None) -> None:
        super().__init__(count, cores)
        if cores is None:
            self.pool = FORK.Pool(count)
        else:
            self.pool = FORK.Pool(count, pin_worker, (cores,))
        self.adder = Adder()

    def call(self, k: int) -> int:
        answer: int = self.pool.apply(self.adder.add, (k,))
        return answer

    def submit(self, k: int) -> Callable[[], int]:
        return self.pool.apply_async(self.adder.add, (k,)).get

    def map(self, items: Iterable[int]) -> Iterator[int]:
        return self.pool.imap(identity, items, chunksize=1)

    def pids(self) -> list[int]:
        return [child.pid or 0 for child in multiprocessing.active_children()]

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()
