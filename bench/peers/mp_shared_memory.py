"""multiprocessing.shared_memory: an array placed once in a named segment, whose name goes through a pipe.

Settings: the worker keeps what it has attached, so that a call maps nothing; the pipe is ``mp.Pipe`` with pickle.
"""

from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from bench.handover import Array, Handover, Look
from bench.harness import FORK
from bench.tasks import look_at, pin_worker


@dataclass
class Placed:
    """A segment and the array in it."""

    segment: SharedMemory
    array: Array | None


class SharedMemoryHandover(Handover):
    def start(self, cores: set[int]) -> None:
        resource_tracker.ensure_running()  # before the fork: one for both, so that nothing is unlinked twice
        self.connection, far = FORK.Pipe()
        self.process = FORK.Process(target=_serve, args=(far, cores), daemon=True)
        self.process.start()
        far.close()

    def place(self, array: Array) -> Placed:
        segment = SharedMemory(create=True, size=array.nbytes)
        placed: Array = np.ndarray(array.shape, array.dtype, buffer=segment.buf)
        placed[:] = array
        return Placed(segment, placed)

    def stamp(self, placed: Placed, number: int) -> int:
        return super().stamp(placed.array, number)

    def ask(self, look: Look, placed: Placed) -> int:
        self.connection.send((placed.segment.name, look))
        answer: int = self.connection.recv()
        return answer

    def drop(self, placed: Placed) -> None:
        self.connection.send((placed.segment.name, "drop"))
        self.connection.recv()
        placed.array = None
        placed.segment.close()
        placed.segment.unlink()

    def close(self) -> None:
        self.connection.send(None)
        self.process.join()


def _serve(connection: Connection, cores: set[int]) -> None:
    pin_worker(cores)
    known: dict[str, Placed] = {}
    while (request := connection.recv()) is not None:
        name, look = request
        if name not in known:
            segment = SharedMemory(name)
            known[name] = Placed(segment, np.ndarray(segment.size // 8, np.int64, buffer=segment.buf))
        if look == "drop":
            dropped = known.pop(name)
            dropped.array = None
            dropped.segment.close()
            connection.send(0)
        else:
            connection.send(look_at(known[name].array, look))
