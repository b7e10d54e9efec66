"""The command line: ``python -m shmipc`` or ``shmipc``.

Exit codes: 0 fine, 1 something was found or failed, 2 wrong arguments. Every command takes ``--json``.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from shmipc.base.errors import InvalidArgument, NotFound, ShmipcError
from shmipc.tools import demo, doctor, ps, remains, stack


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="shmipc", description="Actors, mailboxes and arrays in shared memory.")
    commands = made.add_subparsers(dest="command", required=True)
    run = commands.add_parser("demo", help="count the words of a text on all cores, and lose a worker on the way")
    run.add_argument("path", nargs="?", help="a file or folder of text; default: the Python standard library")
    run.add_argument("--workers", type=positive, help="number of workers; default: one per core")
    look = commands.add_parser("ps", help="your systems and their processes, the stuck ones first")
    look.add_argument("systems", nargs="*", metavar="SYSTEM", help="names of systems; default: all of yours")
    look.add_argument(
        "--stuck", type=seconds, default=ps.STUCK_SECONDS, metavar="S", help="how long a wait makes stuck; default: 10"
    )
    tell = commands.add_parser("stack", help="the Python stacks of the processes of your systems")
    tell.add_argument("targets", nargs="*", metavar="SYSTEM|PID", help="default: all of yours")
    clean = commands.add_parser("gc", help="remove what dead systems have left in /dev/shm")
    clean.add_argument("--dry-run", action="store_true", help="say it, and remove nothing")
    commands.add_parser("doctor", help="does this machine have what shmipc needs?")
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print JSON")
    return made


def run_demo(given: argparse.Namespace) -> tuple[Any, str, bool]:
    try:
        report = demo.run(given.path, given.workers)
    except demo.BadInput as error:
        raise InvalidArgument(str(error)) from None
    return report.as_dict(), report.as_text(), not report.correct


def run_ps(given: argparse.Namespace) -> tuple[Any, str, bool]:
    systems, found = ps.run(given.systems, given.stuck)
    return systems, ps.as_text(systems), found


def run_stack(given: argparse.Namespace) -> tuple[Any, str, bool]:
    systems, found = stack.run(given.targets)
    return systems, stack.as_text(systems), found


def run_gc(given: argparse.Namespace) -> tuple[Any, str, bool]:
    report, found = remains.run(given.dry_run)
    return report, remains.as_text(report), found


def run_doctor(given: argparse.Namespace) -> tuple[Any, str, bool]:
    report, found = doctor.run()
    return report, doctor.as_text(report), found


COMMANDS: dict[str, Callable[[argparse.Namespace], tuple[Any, str, bool]]] = {
    "demo": run_demo,
    "ps": run_ps,
    "stack": run_stack,
    "gc": run_gc,
    "doctor": run_doctor,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    given = parser().parse_args(arguments)
    try:
        report, text, found = COMMANDS[given.command](given)
    except InvalidArgument as error:
        print(f"shmipc {given.command}: {error}", file=sys.stderr)
        return 2
    except NotFound as error:
        print(f"shmipc {given.command}: {error}", file=sys.stderr)
        return 1
    except (ShmipcError, OSError) as error:
        print(f"shmipc {given.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    try:
        print(json.dumps(report, indent=2) if given.json else text, flush=True)
    except BrokenPipeError:  # by a pager that was left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if found else 0
