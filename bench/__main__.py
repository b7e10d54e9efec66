"""``python -m bench [names...] [--quick] [--json DIR] [--repeats N] [--list]``."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from bench import machine
from bench.harness import Settings
from bench.limits import build
from bench.plot import draw
from bench.rows import Bench, print_bench, write_bench

BENCHES = (
    "bench_one_way",
    "bench_round_trip",
    "bench_call",
    "bench_pool",
    "bench_fan_in",
    "bench_bus",
    "bench_start",
    "bench_death",
    "bench_big_array",
    "bench_shared_array",
    "bench_small_array",
    "bench_sweep",
    "bench_backlog",
    "bench_waits",
    "bench_memory",
)
LOAD_NOTED = 0.5
RESULTS = Path(__file__).resolve().parent / "results"


def main(words: Sequence[str]) -> int:
    """Exit code 0: all of ours ran, whether a bar is met or not; 1: something of ours failed; 2: unknown name."""
    options = _parse(words)
    modules = {name: importlib.import_module(f"bench.{name}") for name in BENCHES}
    if options.list:
        for name, module in modules.items():
            print(f"{name:18} {', '.join(module.ROWS):8} {(module.__doc__ or '').splitlines()[0]}")
        return 0
    chosen, unknown = _choose(options.names, modules)
    if unknown:
        print(f"no such bench or row: {', '.join(unknown)}; --list shows all", file=sys.stderr)
        return 2
    settings = Settings(quick=options.quick, repeats=options.repeats or Settings().repeats)
    folder = options.json or (None if options.quick else RESULTS)
    command = _command(options)
    build.build_all()
    load = os.getloadavg()[0]
    if load > LOAD_NOTED and not options.quick:
        print(f"this machine is busy (load {load:.2f}): the figures will say so too", file=sys.stderr)
    failed = False
    written = []
    for name, rows in chosen.items():
        where = machine.describe()
        bench = modules[name].run(settings, frozenset(rows))
        print_bench(bench)
        if folder is not None:
            written.append(write_bench(bench, folder, command, settings, where))
        failed = failed or _ours_failed(bench)
    for path in written:  # at the end: matplotlib brings threads, and drivers are forked from here
        draw(path)
    return 1 if failed else 0


def _choose(names: Sequence[str], modules: dict[str, ModuleType]) -> tuple[dict[str, list[str]], list[str]]:
    """The rows wanted of each bench; a name is a bench, with or without "bench_", or a row."""
    chosen: dict[str, list[str]] = {}
    unknown = []
    for wanted in names or BENCHES:
        name = wanted if wanted.startswith("bench_") else f"bench_{wanted}"
        if name in modules:
            chosen[name] = list(modules[name].ROWS)
            continue
        owners = [name for name, module in modules.items() if wanted.upper() in module.ROWS]
        if not owners:
            unknown.append(wanted)
        for owner in owners:
            chosen.setdefault(owner, []).append(wanted.upper())
    return chosen, unknown


def _command(options: argparse.Namespace) -> str:
    """What to type to measure the same again; where the JSON went is nobody's business."""
    words = ["python -m bench", *options.names]
    if options.quick:
        words.append("--quick")
    if options.repeats:
        words.append(f"--repeats {options.repeats}")
    return " ".join(words)


def _ours_failed(bench: Bench) -> bool:
    return any(
        measured.error or measured.missing
        for group in bench.groups
        for measured in group.results
        if measured.subject.role == "ours"
    )


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help="benches (one_way) or rows (P1); all if none is named")
    parser.add_argument("--quick", action="store_true", help="smallest counts, one round: a smoke test")
    parser.add_argument("--json", type=Path, metavar="DIR", help="where to write; bench/results unless --quick")
    parser.add_argument("--repeats", type=int, metavar="N", help="runs of each subject")
    parser.add_argument("--list", action="store_true", help="show benches and their rows, run nothing")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
