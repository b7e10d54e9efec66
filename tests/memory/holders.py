"""Actors that hold arrays, arrays whose bytes tell them apart, and the census of what a system has leased."""

import ctypes
import gc
import zlib
from typing import Any

import numpy as np

import shmipc
from shmipc import _native
from shmipc.memory import membership


class Holder:
    """An actor that keeps arrays and says what it sees of them."""

    def __init__(self) -> None:
        self.kept: dict[str, np.ndarray] = {}

    def keep(self, key: str, array: np.ndarray) -> None:
        self.kept[key] = array

    def keep_part(self, key: str, array: np.ndarray, start: int, stop: int) -> None:
        self.kept[key] = array[start:stop]

    def drop(self, key: str) -> None:
        del self.kept[key]

    def checksum(self, key: str) -> int:
        return checksum(self.kept[key])

    def look(self, array: np.ndarray) -> dict[str, Any]:
        """All there is to see of an array, and its elements as an ordinary array."""
        return {
            "type": type(array),
            "dtype": array.dtype,
            "shape": array.shape,
            "strides": array.strides,
            "writeable": array.flags.writeable,
            "place": _native.shared_block(array),
            "elements": array.tobytes("A"),
        }

    def place_of(self, key: str) -> tuple[int, int] | None:
        return _native.shared_block(self.kept[key])

    def try_to_write(self, array: np.ndarray) -> list[str]:
        """Everything that Python offers to write to it; the errors."""
        told = []
        for attempt in (
            lambda: array.__setitem__(0, 1),
            lambda: array.fill(1),
            lambda: array.setflags(write=True),
            lambda: np.add(array, 1, out=array),
            lambda: memoryview(array).__setitem__(0, 1),
            lambda: memoryview(array.base).__setitem__(0, 1),
            lambda: np.frombuffer(array.base, np.uint8).__setitem__(0, 1),
            lambda: np.ndarray((1,), np.uint8, buffer=array.base).__setitem__(0, 1),
        ):
            try:
                attempt()
            except (ValueError, TypeError) as error:
                told.append(type(error).__name__)
            else:
                told.append("written")
        return told

    def write_through_c(self, array: np.ndarray) -> None:
        ctypes.memset(array.ctypes.data, 1, 1)

    def trim(self) -> None:
        """Give back what this process keeps warm."""
        gc.collect()
        trim()


def trim() -> None:
    membership.current().member.trim()


def checksum(array: np.ndarray) -> int:
    """CRC of its bytes in C order; a large contiguous array is not copied for it."""
    return zlib.crc32(array.view(np.uint8) if array.nbytes > 1 << 20 else array.tobytes())


def pattern(shape: int | tuple[int, ...], dtype: Any = np.uint8, order: Any = "C", seed: int = 0) -> np.ndarray:
    """A shared array whose bytes differ from their neighbours."""
    array = shmipc.empty(shape, dtype, order)
    if array.nbytes:
        raw: np.ndarray = np.ndarray((array.nbytes,), np.uint8, buffer=array.base)
        raw[:] = (np.arange(array.nbytes) * 37 + seed) % (2 if array.dtype == bool else 251)
    return array


class Census:
    """How many leases and blocks a system has when nothing of a test is left."""

    def __init__(self, system: shmipc.System, *holders: Any) -> None:
        self.system, self.holders = system, holders
        self.baseline = self.now()

    def now(self) -> tuple[int, int]:
        for holder in self.holders:
            holder.trim()
        gc.collect()
        trim()
        counts = self.system.statistics()
        return counts.leases, counts.blocks

    def is_back(self) -> bool:
        return self.now() == self.baseline


def place_is_reused(place: tuple[int, int], nbytes: int) -> bool:
    """Do new arrays get that block? As many are made as it takes to see."""
    made = [shmipc.empty(nbytes, np.uint8) for _ in range(50)]
    for array in made:
        array[:] = 0xEE
    return place in {_native.shared_block(array) for array in made}
