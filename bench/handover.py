"""The protocol that ours and the peers share where an array is handed to a worker and a small answer comes back."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench import machine
from bench.harness import Sample, Settings, percentiles

Array = np.ndarray[Any, np.dtype[np.int64]]
Look = Literal["ends", "all"]

LOOKS: tuple[Look, ...] = ("ends", "all")
SIZES = {
    **{f"{4**power} KiB": 4**power << 10 for power in range(5)},
    **{f"{4**power} MiB": 4**power << 20 for power in range(5)},
    "1 GiB": 1 << 30,
}
QUICK_SIZES = ("1 KiB", "4 MiB")
COPIES = 6  # of an array that must fit: the caller's, the store's, and what it frees late
MOST_CALLS, FEWEST_CALLS, WARM_CALLS = 1_000, 3, 3
LARGE_BYTES, LARGE_WARM_CALLS = 64 << 20, 2  # from here on a call takes long enough to be warm after fewer
PATIENCE_S = 3.0  # no further call of a size is begun after that
FIRST = 7  # at both ends of an array that is not written to between two calls


class Handover:
    """How an array gets to one worker, which runs in another process and is up before any clock runs.

    What an array becomes when it is placed is kept, and handed over as often as is asked.
    """

    def start(self, cores: set[int]) -> None:
        """Start the worker, pinned to ``cores``; afterwards the caller pins itself."""
        raise NotImplementedError

    def place(self, array: Array) -> Any:
        """Outside the clock: what is handed over for ``array``; by default the array itself, at each call anew."""
        return array

    def stamp(self, placed: Any, number: int) -> int:
        """Outside the clock: write ``number`` at both ends and return it; FIRST where nobody may write."""
        placed[0] = placed[-1] = number
        return number

    def ask(self, look: Look, placed: Any) -> int:
        """What the clock times: hand it over, and wait for what the worker says of it (`tasks.look_at`)."""
        raise NotImplementedError

    def drop(self, placed: Any) -> None:
        """Outside the clock: it is not handed over again."""

    def close(self) -> None:
        """End the worker."""


def sizes_that_fit(settings: Settings) -> tuple[dict[str, int], list[str]]:
    """The sizes to measure, and those for which /dev/shm or the memory has no room now."""
    wanted = {name: nbytes for name, nbytes in SIZES.items() if not settings.quick or name in QUICK_SIZES}
    room = min(shm_bytes(), _memory_bytes())
    fitting = {name: nbytes for name, nbytes in wanted.items() if COPIES * nbytes <= room}
    return fitting, [name for name in wanted if name not in fitting]


def measure_handover(make: Callable[[], Handover], sizes: Sequence[str], settings: Settings) -> Sample:
    """For each look and size the p50 of a call, ns, and beside it CPU time, ns, and page faults, of all processes."""
    near_core, far_core = machine.two_cores()
    handover = make()
    sample: Sample = {}
    handover.start({far_core})
    try:
        machine.pin({near_core})
        for size in sizes:
            array = np.ones(SIZES[size] // 8, np.int64)
            array[0] = array[-1] = FIRST
            placed = handover.place(array)
            for look in LOOKS:
                for quantity, value in _time_calls(handover, look, placed, array.size, settings).items():
                    sample[key(look, size, quantity)] = value
            handover.drop(placed)
            del array, placed
    finally:
        handover.close()
    return sample


def key(look: Look, size: str, quantity: str = "p50") -> str:
    """Of a sample: a time is named by its look and size alone."""
    return f"{look} {size}" if quantity == "p50" else f"{look} {size} {quantity}"


def _time_calls(handover: Handover, look: Look, placed: Any, count: int, settings: Settings) -> Sample:
    """Warm-up, which also says how many calls are made, then the calls."""
    others = count - 2 if look == "all" else 0
    warm_calls = LARGE_WARM_CALLS if count * 8 >= LARGE_BYTES else WARM_CALLS
    warm, _ = _call_often(handover, look, placed, others, settings.count(warm_calls, 1))
    wanted = settings.run_seconds / 3 * 1e9 / min(warm)
    calls = settings.count(min(MOST_CALLS, max(FEWEST_CALLS, round(wanted))), 2)
    samples, spent = _call_often(handover, look, placed, others, calls)
    return {"p50": percentiles(samples)["p50"], **spent}


def _call_often(
    handover: Handover, look: Look, placed: Any, others: int, calls: int
) -> tuple[list[int], dict[str, float]]:
    clock = time.perf_counter_ns
    samples = []
    spending = machine.Spending()
    until = clock() + PATIENCE_S * 1e9
    for number in range(calls):
        if number and clock() > until:
            break
        told = handover.stamp(placed, number)
        started = clock()
        answer = handover.ask(look, placed)
        samples.append(clock() - started)
        if answer != 2 * told + others:
            raise AssertionError(f"the worker answered {answer}, not {2 * told + others}: it has seen another array")
    spent = spending.per(len(samples))
    return samples, {name: spent[f"near_{name}"] + spent[f"far_{name}"] for name in ("cpu", "faults")}


def shm_bytes() -> int:
    """What /dev/shm has free."""
    found = os.statvfs("/dev/shm")
    return found.f_bavail * found.f_frsize


def _memory_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
