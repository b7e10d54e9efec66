"""Runs subjects (ours, the peers, the limits) side by side and sums up what they measured.

Every run of every subject happens in a driver process of its own, forked from a parent that imports none of
them: no run inherits threads, warm caches or leaks of another. Runs are interleaved, each round in another
order, so a machine that slows down slows all of them.
"""

import contextlib
import importlib
import math
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal

Role = Literal["ours", "peer", "limit", "beside"]
Sample = dict[str, float]

FAREWELL_S = 10.0

FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Args:
        repeats: Runs of each subject.
        run_seconds: What the timed part of one run aims at.
        quick: Smallest counts that still take every path: a smoke test, not a figure.
    """

    repeats: int = 10
    run_seconds: float = 0.3
    quick: bool = False

    def count(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@dataclass(frozen=True)
class Subject:
    """One thing to measure.

    Args:
        name: As printed.
        role: "ours", "peer", "limit", or "beside" for what is printed and not judged.
        measure: Called in a driver process; gives one number per quantity, the same keys in each run.
        polls: Waits by looping on a core, never by sleeping in the kernel.
        most_repeats: Fewer runs than the settings ask for, for what takes seconds.
        limit_seconds: After this the run is killed and counts as failed.
    """

    name: str
    role: Role
    measure: Callable[[Settings], Sample]
    polls: bool = False
    most_repeats: int = 1_000
    limit_seconds: float = 60.0


@dataclass
class Measured:
    """All runs of one subject.

    Args:
        runs: What each run gave.
        error: Why the subject has no figure, or "".
        story: The traceback of that error, or "".
        missing: The package that is not installed, or "".
    """

    subject: Subject
    runs: list[Sample] = field(default_factory=list)
    error: str = ""
    story: str = ""
    missing: str = ""

    def median(self, key: str) -> float:
        """The median over the runs; nan without runs."""
        values = [run[key] for run in self.runs if key in run]
        return statistics.median(values) if values else math.nan

    def spread(self, key: str) -> tuple[float, float]:
        values = [run[key] for run in self.runs if key in run]
        return (min(values), max(values)) if values else (math.nan, math.nan)

    def quantities(self) -> list[str]:
        return list(self.runs[0]) if self.runs else []


def measure_all(title: str, subjects: Sequence[Subject], settings: Settings) -> list[Measured]:
    """Every subject ``settings.repeats`` times, interleaved; a subject that fails is left out from then on."""
    results = [Measured(subject) for subject in subjects]
    rounds = 1 if settings.quick else settings.repeats
    for turn in range(rounds):
        for place in range(len(results)):
            measured = results[(turn + place) % len(results)]
            if measured.error or measured.missing or turn >= measured.subject.most_repeats:
                continue
            _say(f"{title}: round {turn + 1} of {rounds}: {measured.subject.name}")
            _run_once(measured, settings)
    _say("")
    for story in dict.fromkeys(measured.story for measured in results if measured.story):
        print(story, file=sys.stderr)
    return results


def percentiles(samples: Sequence[int]) -> Sample:
    """p50, p99 and p99.9 by nearest rank, and the mean, all in the unit of the samples."""
    ordered = sorted(samples)
    last = len(ordered) - 1

    def rank(share: float) -> float:
        return float(ordered[min(last, max(0, math.ceil(share * len(ordered)) - 1))])

    return {
        "p50": rank(0.5),
        "p99": rank(0.99),
        "p99.9": rank(0.999),
        "mean": statistics.fmean(ordered),
    }


def best(results: Sequence[Measured], key: str, *, highest: bool, polls: bool | None = None) -> Measured | None:
    """The best peer by the median of ``key``; ``polls`` narrows to those that poll or that block."""
    peers = [
        measured
        for measured in results
        if measured.subject.role == "peer" and measured.runs and polls in (None, measured.subject.polls)
    ]
    if not peers:
        return None
    pick = max if highest else min
    return pick(peers, key=lambda measured: measured.median(key))


def ours(results: Sequence[Measured]) -> Measured | None:
    return next((measured for measured in results if measured.subject.role == "ours"), None)


def limit(results: Sequence[Measured]) -> Measured | None:
    return next((measured for measured in results if measured.subject.role == "limit"), None)


def _run_once(measured: Measured, settings: Settings) -> None:
    near, far = FORK.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        driver = FORK.Process(target=_drive, args=(measured.subject, settings, folder, far))
        driver.start()
        far.close()
        farewell_s = 0.0
        try:
            if near.poll(measured.subject.limit_seconds):
                kind, answer, story = near.recv()
                farewell_s = FAREWELL_S
            else:
                kind, answer, story = "error", f"no result within {measured.subject.limit_seconds:g} s", ""
        except EOFError:
            kind, answer, story = "error", "driver process died", ""
        finally:
            _end(driver, farewell_s)
            near.close()
    if kind == "sample":
        measured.runs.append(answer)
    elif kind == "missing":
        measured.missing = answer
    else:
        measured.error, measured.story = answer, story


def _drive(subject: Subject, settings: Settings, folder: str, answers: Connection) -> None:
    os.setsid()  # so that the watchdog can end everything that this run started
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        answers.send(("sample", subject.measure(settings), ""))
    except ModuleNotFoundError as error:
        answers.send(("missing", error.name or str(error), ""))
    except BaseException as error:
        answers.send(("error", f"{type(error).__name__}: {error}", traceback.format_exc()))


def _end(driver: BaseProcess, farewell_s: float) -> None:
    """Let the driver tidy up, then kill what is left of its group; only then is its pid free for others."""
    wait([driver.sentinel], farewell_s)
    driver.kill()
    pid = driver.pid
    assert pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    driver.join()


def need(module: str) -> None:
    """Raise ModuleNotFoundError in the driver, before any process is started, if a peer is not installed."""
    importlib.import_module(module)


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
