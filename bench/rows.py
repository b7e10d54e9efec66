"""Rows of the specification with their bars, printed as a table and written as JSON."""

import datetime
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import machine
from bench.harness import Measured, Settings


@dataclass(frozen=True)
class Row:
    """One bar of one row, and whether it is met.

    Args:
        row: Id in the performance specification, P1 to P18.
        work: What is measured.
        unit: Of ``ours``, ``best_peer`` and ``limit``.
        ours, best_peer, limit: Medians over the runs; None where the row has no such figure or it was not measured.
        best_peer_name, limit_name: Whose figures these are.
        ratio: The number that the bar judges; None if ours was not measured.
        bar: The bar, in words.
        met: None if there is nothing to judge.
    """

    row: str
    work: str
    unit: str
    ours: float | None
    best_peer: float | None
    best_peer_name: str
    limit: float | None
    limit_name: str
    ratio: float | None
    bar: str
    met: bool | None


@dataclass(frozen=True)
class Bench:
    """What one bench file found.

    Args:
        name: File name without ".py".
        about: Its docstring.
        rows: The bars.
        groups: Title, unit of the figures ("M/s" or "us" ...) and all subjects, for the long table and the JSON.
    """

    name: str
    about: str
    rows: list[Row]
    groups: "list[Group]"


@dataclass(frozen=True)
class Group:
    """Subjects measured together.

    Args:
        title: What they did.
        columns: Key of a sample, heading, factor and digits of each column.
        results: What was measured.
        key: The judged quantity, a key of every sample; plots show it.
        unit: Of the judged quantity after its factor.
        points: Keys of a sample with the size that each was measured at, in bytes: a plot is a line through them.
    """

    title: str
    columns: Sequence[tuple[str, str, float, int]]
    results: list[Measured]
    key: str
    unit: str
    points: Sequence[tuple[str, float]] = ()


def judge(
    row: str,
    work: str,
    unit: str,
    *,
    ours: Measured | None,
    key: str,
    factor: float = 1.0,
    peer: Measured | None = None,
    limit: Measured | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    against: str = "peer",
    note: str = "",
) -> Row:
    """A row whose ratio is ours over the peer, over the limit, or ours alone (``against`` "peer", "limit", "none").

    With ``at_least`` on a time the peer is divided by ours: "40x faster". The bar says which way it goes.
    """
    mine, theirs, bound = (_figure(measured, key, factor) for measured in (ours, peer, limit))
    reference = {"peer": theirs, "limit": bound, "none": 1.0}[against]
    ratio = None
    if mine is not None and reference is not None:
        faster = at_least is not None and unit in ("ns", "us", "ms", "s")
        ratio = reference / mine if faster else mine / reference
    met = None
    if ratio is not None:
        met = ratio >= at_least if at_least is not None else ratio <= (at_most or 0.0)
    word, value = ("at least", at_least) if at_least is not None else ("at most", at_most)
    if against == "none":
        bar = f"{word} {value:g} {unit}"
    else:
        bar = f"{word} {value:g}x the {'best peer' if against == 'peer' else 'limit'}"
    return Row(
        row=row,
        work=work,
        unit=unit,
        ours=mine,
        best_peer=theirs,
        best_peer_name=peer.subject.name if peer else "",
        limit=bound,
        limit_name=limit.subject.name if limit else "",
        ratio=ratio,
        bar=bar + (f" ({note})" if note else ""),
        met=met,
    )


def print_bench(bench: Bench) -> None:
    """The rows, then every subject with its percentiles and CPU time, losses included."""
    print(f"\n{bench.name}: {bench.about.splitlines()[0]}\n")
    head = ("row", "work", "ours", "best peer", "limit", "ratio", "bar", "met")
    lines = [
        (
            row.row,
            row.work,
            _number(row.ours, row.unit),
            _number(row.best_peer, row.unit) + (f" {row.best_peer_name}" if row.best_peer_name else ""),
            _number(row.limit, row.unit) + (f" {row.limit_name}" if row.limit_name else ""),
            "-" if row.ratio is None else f"{row.ratio:.3g}",
            row.bar,
            {True: "yes", False: "NO", None: "not judged"}[row.met],
        )
        for row in bench.rows
    ]
    if lines:
        _print_table(head, lines)
    for group in bench.groups:
        print(f"\n{group.title}")
        headings = ("subject", "role", *(heading for _, heading, _, _ in group.columns))
        _print_table(headings, [_subject_line(group, measured) for measured in group.results])
    sys.stdout.flush()


def write_bench(bench: Bench, folder: Path, command: str, settings: Settings, where: dict[str, object]) -> Path:
    """``<folder>/<bench>.json``: ``where`` it was measured, the rows, and every run of every subject."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bench.name}.json"
    content = {
        "bench": bench.name,
        "about": bench.about,
        "command": command,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **machine.commit(),
        "machine": where,
        "settings": asdict(settings),
        "rows": [asdict(row) for row in bench.rows],
        "groups": [
            {
                "title": group.title,
                "judged": group.key,
                "unit": group.unit,
                "points": group.points,
                "factor": next(factor for key, _, factor, _ in group.columns if key == group.key),
                "subjects": [_subject_record(group, measured) for measured in group.results],
            }
            for group in bench.groups
        ],
    }
    path.write_text(json.dumps(_for_json(content), indent=1) + "\n")
    return path


def _subject_record(group: Group, measured: Measured) -> dict[str, object]:
    """Every run whole; only the group's own quantities where several groups show the same runs, so with points."""
    subject = measured.subject
    keys = [key for key in measured.quantities() if not group.points or key in dict(group.points)]
    return {
        "name": subject.name,
        "role": subject.role,
        "polls": subject.polls,
        "error": measured.error,
        "missing": measured.missing,
        "median": {key: measured.median(key) for key in keys},
        "spread": {key: measured.spread(key) for key in keys},
        "runs": [{key: run[key] for key in keys if key in run} for run in measured.runs],
    }


def _subject_line(group: Group, measured: Measured) -> tuple[str, ...]:
    name, role = measured.subject.name, measured.subject.role
    if measured.missing:
        return (name, role, f"not installed: {measured.missing}")
    if measured.error and not measured.runs:
        return (name, role, measured.error)
    cells = []
    for key, _, factor, digits in group.columns:
        edge = key.partition(":")[2]
        if edge:
            low, high = measured.spread(key.partition(":")[0])
            value = low if edge == "min" else high
        else:
            value = measured.median(key)
        cells.append("-" if math.isnan(value) else f"{value * factor:,.{digits}f}")
    if measured.error:
        cells.append(f"failed after {len(measured.runs)} runs: {measured.error}")
    return (name, role, *cells)


def _print_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    widths = [len(cell) for cell in head]
    for line in lines:
        for column, cell in enumerate(line):
            if len(line) == len(head):
                widths[column] = max(widths[column], len(cell))
    for line in (head, tuple("-" * width for width in widths), *lines):
        padded = (cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=False))
        print("  " + "  ".join(padded).rstrip())


def _figure(measured: Measured | None, key: str, factor: float) -> float | None:
    if measured is None or not measured.runs:
        return None
    return measured.median(key) * factor


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.3g} {unit}"


def _for_json(value: object) -> object:
    if isinstance(value, dict):
        return {key: _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
