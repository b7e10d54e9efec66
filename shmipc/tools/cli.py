"""The command line: ``python -m shmipc`` or ``shmipc``. Exit codes: 0 done, 1 failed, 2 wrong arguments."""

import argparse
import json
import sys

from shmipc.base.errors import ShmipcError
from shmipc.tools import demo


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="shmipc", description="Actors, mailboxes and arrays in shared memory.")
    commands = made.add_subparsers(dest="command", required=True)
    run = commands.add_parser("demo", help="count the words of a text on all cores, and lose a worker on the way")
    run.add_argument("path", nargs="?", help="a file or folder of text; default: the Python standard library")
    run.add_argument("--workers", type=positive, help="number of workers; default: one per core")
    run.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    given = parser().parse_args(arguments)
    try:
        report = demo.run(given.path, given.workers)
    except demo.BadInput as error:
        print(f"shmipc demo: {error}", file=sys.stderr)
        return 2
    except (ShmipcError, OSError) as error:
        print(f"shmipc demo: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.as_dict(), indent=2) if given.json else report.as_text())
    return 0 if report.correct else 1
