"""joblib.Parallel over loky: arrays above ``max_nbytes`` are dumped into a file of /dev/shm that the worker maps.

Settings: ``max_nbytes`` as it comes (1 MiB: smaller ones are pickled); two workers, because with one joblib calls in
the caller. `JoblibMemmap` makes a Parallel for each call, as one does: loky keeps the workers, and a Parallel that is
kept dumps no array twice, and keeps the file of each. `JoblibHandle` dumps the array once, and hands its memmap over.
Both look for results every 10 ms.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bench import machine
from bench.handover import Array, Handover, Look
from bench.harness import need
from bench.tasks import look_at

WORKERS = 2


class JoblibMemmap(Handover):
    def start(self, cores: set[int]) -> None:
        need("joblib")
        import joblib

        os.environ["PYTHONWARNINGS"] = "ignore"  # its tracker's, of folders that were never made
        self.folder = Path(tempfile.mkdtemp(prefix="bench-joblib-", dir="/dev/shm"))
        machine.pin(cores)  # the workers start with it
        self.look_later = joblib.delayed(look_at)
        self._make_parallel()([self.look_later([1, 2], "ends")] * WORKERS)

    def _make_parallel(self) -> Any:
        import joblib

        return joblib.Parallel(WORKERS, backend="loky", temp_folder=str(self.folder))

    def ask(self, look: Look, placed: Array) -> int:
        answer: int = self._make_parallel()([self.look_later(placed, look)])[0]
        return answer

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(kill_workers=True)
        shutil.rmtree(self.folder)


class JoblibHandle(JoblibMemmap):
    def start(self, cores: set[int]) -> None:
        super().start(cores)
        self.parallel = self._make_parallel().__enter__()

    def place(self, array: Array) -> Any:
        import joblib

        path = self.folder / f"{array.nbytes}.pkl"
        joblib.dump(array, path)
        return joblib.load(path, mmap_mode="r+")

    def ask(self, look: Look, placed: Any) -> int:
        answer: int = self.parallel([self.look_later(placed, look)])[0]
        return answer

    def drop(self, placed: Any) -> None:
        Path(placed.filename).unlink()

    def close(self) -> None:
        self.parallel.__exit__(None, None, None)
        super().close()
