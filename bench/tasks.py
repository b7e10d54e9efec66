"""What runs inside workers and actors; a module of its own, because every launcher imports it by name."""

import threading
from typing import Any

from bench import machine


def identity(k: int) -> int:
    """The empty task; it hands its argument back so that lost or mixed-up results are seen."""
    return k


def pin_worker(cores: set[int]) -> None:
    machine.pin(cores)


class Adder:
    """A class actor with one method and no state that matters.

    Args:
        cores: Cores to pin the worker to; None leaves it free.
    """

    def __init__(self, cores: set[int] | None = None) -> None:
        if cores is not None:
            machine.pin(cores)

    def add(self, k: int) -> int:
        return k + 1


def sum_of(array: Any) -> float:
    return float(array.sum())


def look_at(array: Any, look: str) -> int:
    """The first element and the last, or the sum of all: what a worker tells of an array of integers."""
    return int(array.sum()) if look == "all" else int(array[0]) + int(array[-1])


class Looker:
    """A class actor that looks at arrays of integers; also Ray's."""

    def look(self, array: Any, look: str) -> int:
        return look_at(array, look)

    def pin(self, cores: set[int]) -> None:
        machine.pin(cores)


class Summer:
    """A class actor that looks at arrays.

    Args:
        cores: Cores to pin the worker to; None leaves it free.
    """

    def __init__(self, cores: set[int] | None = None) -> None:
        if cores is not None:
            machine.pin(cores)

    def sum(self, array: Any) -> float:
        return sum_of(array)

    def length(self, array: Any) -> int:
        return len(array)

    def nothing(self) -> None:
        pass


class Ballast:
    """A server with that much private memory, all of it touched, which never answers."""

    def __init__(self, mib: int) -> None:
        self.memory = bytearray(mib << 20)
        self.memory[::4096] = b"\x01" * len(self.memory[::4096])

    def private_mib(self) -> float:
        """What it has of its own, in MiB."""
        with open("/proc/self/smaps_rollup") as lines:
            found = [int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))]
        return sum(found) / 1024

    def serve(self) -> None:
        threading.Event().wait()
