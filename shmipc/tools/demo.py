"""The main job, end to end: count the identifiers and words of a large text on all cores.

The text, by default the sources of the Python standard library, is read once into one shared array. A pool of one
worker per core gets slices of it, cut at newlines, as handles. Half-way one worker is killed with SIGKILL, on
purpose; ``retries=1`` has its slice done again. The result is checked against a plain pass in this process.
"""

import os
import re
import signal
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shmipc import _native
from shmipc.base.cores import core_count
from shmipc.memory import arrays
from shmipc.runtime.pools import Pool
from shmipc.runtime.processes import process
from shmipc.runtime.progress import Progress
from shmipc.runtime.systems import System

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

SLICE_BYTES = 1 << 20
SLICES_PER_WORKER = 8
EMPTY_CALLS = 20_000
IDENTIFIER = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
WORD = re.compile(rb"[A-Za-z]+")
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}


class BadInput(Exception):
    """A path that cannot be analysed; the text says why, in one line."""


# --- reading ---------------------------------------------------------------------------------------------------


def find_files(path: str | None) -> list[Path]:
    """The files to read, sorted; raises BadInput."""
    if path is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        return sorted(file for file in walk(root) if file.suffix == ".py")
    root = Path(path)
    if not root.exists():
        raise BadInput(f"{path}: no such file or folder")
    if not os.access(root, os.R_OK):
        raise BadInput(f"{path}: permission denied")
    return sorted(walk(root)) if root.is_dir() else [root]


def walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for name in names:
            file = Path(folder, name)
            if file.is_file() and os.access(file, os.R_OK):
                yield file


def read_shared(path: str | None) -> tuple[Bytes, int]:
    """The text of all files in one shared array, and the number of files; raises BadInput."""
    files = find_files(path)
    total = sum(file.stat().st_size + 1 for file in files)
    text: Bytes = arrays.empty(total, np.uint8)
    used = count = 0
    for file in files:
        try:
            with open(file, "rb", buffering=0) as stream:
                end = used
                while end < total - 1 and (read := stream.readinto(text.data[end : total - 1])):
                    end += read
        except OSError as error:
            if len(files) == 1:
                raise BadInput(f"{path}: {error.strerror}") from error
            continue
        if end > used:
            text[end] = ord("\n")
            used = end + 1
            count += 1
    if used == 0:
        raise BadInput(f"{path}: nothing to read, it is empty")
    return text[:used], count


def cut(text: Bytes, workers: int) -> list[Bytes]:
    """Slices of a megabyte or more, each ending at a newline; they are views, nothing is copied."""
    size = max(SLICE_BYTES, len(text) // (workers * SLICES_PER_WORKER))
    slices, start = [], 0
    while start < len(text):
        end = start + size
        if end >= len(text) - SLICE_BYTES // 2:
            end = len(text)
        else:
            newlines = np.flatnonzero(text[end:] == ord("\n")) if len(text) - end < size else first_newline(text, end)
            end = end + int(newlines[0]) + 1 if len(newlines) else len(text)
        slices.append(text[start:end])
        start = end
    return slices


def first_newline(text: Bytes, start: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Where the newlines after ``start`` are, as far as one has to look to find one."""
    step = 1 << 16
    for at in range(start, len(text), step):
        found = np.flatnonzero(text[at : at + step] == ord("\n"))
        if len(found):
            return found + (at - start)
    return np.empty(0, np.intp)


# --- counting --------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What is counted of a text."""

    identifiers: Counter[bytes] = field(default_factory=Counter)
    words: Counter[bytes] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        self.identifiers.update(other.identifiers)
        self.words.update(other.words)


def count(piece: Bytes) -> Counts:
    """The work of one slice."""
    text = piece.data
    return Counts(Counter(IDENTIFIER.findall(text)), Counter(map(bytes.lower, WORD.findall(text))))


def nothing(number: int) -> int:
    """An empty task."""
    return number


# --- the job ---------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What the demo found; seconds, bytes."""

    files: int
    text_bytes: int
    slices: int
    workers: int
    identifiers: int
    distinct_identifiers: int
    words: int
    distinct_words: int
    most_frequent: list[tuple[str, int]]
    seconds_alone: float
    seconds_pool: float
    speed_up: float
    bytes_through_rings: int
    bytes_shared: int
    calls_per_second: float
    killed_pid: int | None
    killed_after_slices: int | None
    replaced_by_pid: int | None
    correct: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        share = self.bytes_through_rings / max(1, self.bytes_shared)
        lines = [
            f"read      {self.files} files, {megabytes(self.text_bytes)}, once, into one shared array",
            f"work      {self.slices} slices of {megabytes(self.text_bytes // self.slices)}, "
            f"{self.workers} worker{'s' if self.workers > 1 else ''}",
            f"found     {self.identifiers:,} identifiers ({self.distinct_identifiers:,} distinct), "
            f"{self.words:,} words ({self.distinct_words:,} distinct)",
            "often     " + ", ".join(f"{name} {number:,}" for name, number in self.most_frequent),
            f"time      {self.seconds_pool:.2f} s with the pool, {self.seconds_alone:.2f} s alone: "
            f"{self.speed_up:.2f} times as fast",
            f"memory    {megabytes(self.bytes_shared)} shared as handles, "
            f"{megabytes(self.bytes_through_rings)} copied through rings ({share:.1%})",
            f"calls     {self.calls_per_second:,.0f} empty tasks a second",
            self.kill_text(),
            f"check     {'the same result as a plain pass in one process' if self.correct else 'WRONG RESULT'}",
        ]
        return "\n".join(lines)

    def kill_text(self) -> str:
        if self.killed_pid is None:
            return "kill      none: with one slice there is no half-way"
        return (
            f"kill      worker {self.killed_pid} got SIGKILL after {self.killed_after_slices} of {self.slices} slices; "
            f"its slice was done again, worker {self.replaced_by_pid} took its place"
        )


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


class Kill:
    """The kill on purpose: one busy worker, when half of the slices are done."""

    def __init__(self, pool: Pool, slices: int) -> None:
        self.pool = pool
        self.after = slices // 2 if slices > 1 else None
        self.pid: int | None = None
        self.replaced_by: int | None = None

    def look(self, done: int) -> None:
        if done == self.after and self.pid is None:
            self.victim = process(self.pool.refs[0])
            self.pid = self.victim.pid
            os.kill(self.pid, signal.SIGKILL)

    def wait_for_replacement(self) -> None:
        """Wait until another worker has the place, ten seconds at most."""
        limit = time.monotonic() + 10.0
        while self.pid is not None and time.monotonic() < limit:
            now = process(self.pool.refs[0]).pid
            if now != self.pid:
                self.replaced_by = now
                return
            time.sleep(0.002)


def run(path: str | None = None, workers: int | None = None) -> Report:
    """Do the job; blocks for its time. Raises BadInput, OutOfMemory."""
    number = core_count() if workers is None else workers
    if path is not None:
        find_files(path)  # complain before anything is started
    with System() as system:
        text, files = read_shared(path)
        slices = cut(text, number)
        with system.pool(number) as pool:
            list(pool.map(nothing, range(number)))  # every worker has started
            kill = Kill(pool, len(slices))
            found, sizes, seconds_pool = count_in_pool(pool, slices, kill)
            kill.wait_for_replacement()
            calls_per_second = measure_calls(pool)
        alone, seconds_alone = count_alone(slices)
        report = Report(
            files=files,
            text_bytes=len(text),
            slices=len(slices),
            workers=number,
            identifiers=found.identifiers.total(),
            distinct_identifiers=len(found.identifiers),
            words=found.words.total(),
            distinct_words=len(found.words),
            most_frequent=[(name.decode(), times) for name, times in found.words.most_common(5)],
            seconds_alone=seconds_alone,
            seconds_pool=seconds_pool,
            speed_up=seconds_alone / seconds_pool,
            bytes_through_rings=sizes,
            bytes_shared=sum(piece.nbytes for piece in slices),
            calls_per_second=calls_per_second,
            killed_pid=kill.pid,
            killed_after_slices=kill.after,
            replaced_by_pid=kill.replaced_by,
            correct=alone == found,
        )
        del text, slices
    return report


def count_in_pool(pool: Pool, slices: list[Bytes], kill: Kill) -> tuple[Counts, int, float]:
    """The counts of all slices, the bytes of all results, and the seconds it took."""
    found, sizes = Counts(), 0
    bar = Progress(len(slices), label="counting")
    started = time.perf_counter()
    for done, piece in enumerate(pool.map(count, slices, retries=1), 1):
        kill.look(done)
        found.add(piece)
        sizes += _native.encode_size(piece)
        bar.step()
    seconds = time.perf_counter() - started
    bar.close()
    return found, sizes, seconds


def count_alone(slices: list[Bytes]) -> tuple[Counts, float]:
    """A plain pass in this process; the counts and the seconds."""
    started = time.perf_counter()
    found = Counts()
    for piece in slices:
        found.add(count(piece))
    return found, time.perf_counter() - started


def measure_calls(pool: Pool) -> float:
    """Empty tasks a second."""
    started = time.perf_counter()
    for _ in pool.map(nothing, range(EMPTY_CALLS)):
        pass
    return EMPTY_CALLS / (time.perf_counter() - started)
