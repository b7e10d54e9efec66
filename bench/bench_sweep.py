"""An array of 1 KiB to 1 GiB to a warm worker in another process, and a small answer back.

Measures: call to answer, us, by size; p50 within a run, then the median over the runs. Two series: the worker looks
at the first and the last element, or at all of them (their sum). The caller writes to both ends before each call, and
each answer is compared. Beside each time the CPU time and the page faults of a call, of the caller and of all processes
that it has started together, Ray's and loky's own too. A subject takes the sizes in turn in one run, at least three
calls of each, or as many as three seconds allow: three runs up to 16 MiB, and one of what is larger, where seconds of
copying say the same each time. What is `by handle` or `in place` lies in the store, the file or the segment
beforehand, and is handed over again and again; all others hand over, so copy, a whole array in each call.
Excludes: process start, making and placing the arrays, the first three calls of each size, two of a large one.
Peers: peers/mp_pipe.py, peers/mp_shared_memory.py, peers/joblib_memmap.py, peers/ray_store.py, peers/iceoryx2.py; their
workers are pinned as ours is. Limit: one memcpy between two warm arrays of one process, then the same look.
"""

from functools import partial
from itertools import zip_longest

import numpy as np

from bench.handover import LARGE_BYTES, Array, Handover, Look, key, measure_handover, sizes_that_fit
from bench.harness import Measured, Role, Sample, Settings, Subject, measure_all
from bench.ours import ArrayHandover, HandleHandover
from bench.peers.iceoryx2 import SliceHandover, SliceInPlace
from bench.peers.joblib_memmap import JoblibHandle, JoblibMemmap
from bench.peers.mp_pipe import PipeHandover
from bench.peers.mp_shared_memory import SharedMemoryHandover
from bench.peers.ray_store import RayHandle, RayPut
from bench.rows import Bench, Group
from bench.tasks import look_at

ROWS = ()
REPEATS, LARGE_REPEATS = 3, 1  # of some three seconds; of up to twenty, most of it at the largest size
LOOKS: dict[Look, str] = {"ends": "its ends are looked at", "all": "all of it is read"}
QUANTITIES = (
    ("p50", "time", "us", 1e-3, 1),
    ("cpu", "CPU time of all processes", "us", 1e-3, 1),
    ("faults", "page faults of all processes", "faults", 1.0, 1),
)


class Memcpy(Handover):
    """No worker: a copy within this process, and a look at the copy."""

    def start(self, cores: set[int]) -> None:
        self.copy: Array = np.zeros(0, np.int64)

    def place(self, array: Array) -> Array:
        self.copy = np.empty_like(array)
        return array

    def ask(self, look: Look, placed: Array) -> int:
        np.copyto(self.copy, placed)
        return look_at(self.copy, look)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    sizes, left_out = sizes_that_fit(settings)
    large = [name for name, nbytes in sizes.items() if nbytes >= LARGE_BYTES]
    small = [name for name in sizes if name not in large]
    results = measure_all("sweep", subjects_over(small, REPEATS), settings)
    if large:
        larger = measure_all("sweep, large arrays", subjects_over(large, LARGE_REPEATS), settings)
        results = [joined(*both) for both in zip(results, larger, strict=True)]
    return Bench("bench_sweep", __doc__ or "", [], groups_of(results, sizes, left_out))


def joined(small: Measured, large: Measured) -> Measured:
    """What one subject measured of small arrays and of large ones: their runs in pairs, as far as there are."""
    runs = [first | second for first, second in zip_longest(small.runs, large.runs, fillvalue={})]
    return Measured(
        small.subject, runs, small.error or large.error, small.story or large.story, small.missing or large.missing
    )


def subjects_over(sizes: list[str], repeats: int) -> list[Subject]:
    subject = partial(_subject, sizes, repeats)
    return [
        subject("shmipc", "ours", ArrayHandover),
        subject("shmipc by handle", "ours", HandleHandover),
        subject("mp.Pipe", "peer", PipeHandover),
        subject("shared_memory by handle", "peer", SharedMemoryHandover),
        subject("joblib memmap", "peer", JoblibMemmap),
        subject("joblib by handle", "peer", JoblibHandle),
        subject("Ray put", "peer", RayPut),
        subject("Ray by handle", "peer", RayHandle),
        subject("iceoryx2 polled", "peer", SliceHandover, polls=True),
        subject("iceoryx2 polled, in place", "peer", SliceInPlace, polls=True),
        subject("memcpy", "limit", Memcpy),
    ]


def groups_of(results: list[Measured], sizes: dict[str, int], left_out: list[str]) -> list[Group]:
    """For each look the times, the CPU times and the page faults; the sizes left out stand in the titles."""
    note = f"; no room for {', '.join(left_out)}" if left_out else ""
    return [_group(look, number, sizes, results, note) for look in LOOKS for number in range(len(QUANTITIES))]


def _subject(
    sizes: list[str], repeats: int, name: str, role: Role, make: type[Handover], polls: bool = False
) -> Subject:
    return Subject(name, role, partial(_measure, make, sizes), polls, most_repeats=repeats, limit_seconds=300.0)


def _measure(make: type[Handover], sizes: list[str], settings: Settings) -> Sample:
    return measure_handover(make, sizes, settings)


def _group(look: Look, number: int, sizes: dict[str, int], results: list[Measured], note: str) -> Group:
    quantity, what, unit, factor, digits = QUANTITIES[number]
    columns = [(key(look, size, quantity), f"{size}{' us' if unit == 'us' else ''}", factor, digits) for size in sizes]
    points = [(key(look, size, quantity), nbytes) for size, nbytes in sizes.items()]
    return Group(f"sweep, {LOOKS[look]}: {what} of a call{note}", columns, results, points[-1][0], unit, points)
