"""One process writes frames and four read them all: the loop that every subject of bench_bus.py is measured by."""

import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench import machine
from bench.harness import FORK, Sample, Settings

READERS = 4
FRAME_BYTES = 1 << 20
WARM_UP = 32
Reads = Callable[[], Any]


class Broadcast:
    """How frames get from one process to four.

    It is made before the readers are forked; what is opened afterwards is opened in each process by itself.
    """

    Frame = np.ndarray[Any, np.dtype[np.uint8]]

    def start_writing(self) -> str:
        """In the writer; what readers need to know."""
        return ""

    def start_reading(self, index: int, address: str) -> Reads:
        """In a reader: what gives the next frame's bytes."""
        raise NotImplementedError

    def write(self, frame: Frame, number: int) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """In each process."""


def measure_broadcast(make: type[Broadcast], settings: Settings) -> Sample:
    """Write `count` frames that all readers get; everything that is returned is for one frame."""
    count = settings.count(1_000, 8)
    broadcast = make()
    ends = [FORK.Pipe() for _ in range(READERS)]
    readers = [
        FORK.Process(target=_read, args=(broadcast, index, ends[index][1], count), daemon=True)
        for index in range(READERS)
    ]
    for reader in readers:
        reader.start()
    for _, far in ends:
        far.close()
    near = [end for end, _ in ends]
    address = broadcast.start_writing()
    for end in near:
        end.send(address)
    _gather(near)
    frame = np.zeros(FRAME_BYTES, np.uint8)
    number = 0
    for _ in range(WARM_UP):
        number = _write(broadcast, frame, number)
    _gather(near)
    before = machine.usage()
    start = time.perf_counter_ns()
    for _ in range(count):
        number = _write(broadcast, frame, number)
    told = _gather(near)
    took = time.perf_counter_ns() - start
    spent = machine.usage().since(before)
    for reader in readers:
        reader.join()
    broadcast.end()
    return {
        "rate": count / took * 1e9,
        "copies": took / count / _copy_ns(frame),
        "near_cpu": spent.cpu_ns / count,
        "far_cpu": sum(usage.cpu_ns for usage in told) / count,
        "near_faults": spent.faults / count,
        "far_faults": sum(usage.faults for usage in told) / count,
    }


def _write(broadcast: Broadcast, frame: Broadcast.Frame, number: int) -> int:
    frame[:8] = frame[-8:] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    broadcast.write(frame, number)
    return number + 1


def _gather(near: list[Connection]) -> list[Any]:
    return [end.recv() for end in near]


def _read(broadcast: Broadcast, index: int, far: Connection, count: int) -> None:
    receive = broadcast.start_reading(index, far.recv())
    far.send(0)
    number = _follow(receive, 0, WARM_UP)
    far.send(0)
    before = machine.usage()
    _follow(receive, number, count)
    far.send(machine.usage().since(before))
    broadcast.end()
    os._exit(0)


def _follow(receive: Reads, number: int, count: int) -> int:
    for _ in range(count):
        frame = memoryview(receive())
        wanted = number.to_bytes(8, "little")
        if len(frame) != FRAME_BYTES or frame[:8] != wanted or frame[-8:] != wanted:
            raise AssertionError(f"frame {number} is {bytes(frame[:8])!r}")
        number += 1
    return number


def _copy_ns(frame: Broadcast.Frame) -> float:
    """What one copy of a frame into warm memory takes here."""
    target = frame.copy()
    times = []
    for _ in range(20):
        start = time.perf_counter_ns()
        target[:] = frame
        times.append(time.perf_counter_ns() - start)
    return float(sorted(times)[len(times) // 2])
