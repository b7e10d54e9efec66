"""Python programs that tests run as processes of their own, in a session of their own, and talk to in JSON lines."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

HEAD = """
import json, os, signal, sys, threading, time
import numpy as np
import shmipc
from shmipc import _native

def say(value):
    print(json.dumps(value), flush=True)

def hear():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)
"""


class Program:
    """A program that runs from its making until `close`, which kills whatever of its session is left.

    Args:
        folder: Where its text is put.
        prefix: What executes it, with its own arguments; `unshare` for one.
    """

    def __init__(
        self,
        folder: Path,
        text: str,
        *arguments: object,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        path = folder / "program.py"
        path.write_text(HEAD + textwrap.dedent(text))
        self.seen: set[psutil.Process] = set()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(path), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=dict(os.environ) | (env or {}),
        )
        self.pid = self.process.pid

    def hear(self) -> Any:
        """The next line it says; the test's timeout is the watchdog."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the program ended, {self.process.wait(10.0)}"
        return json.loads(line)

    def tell(self, value: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def ask(self, value: object) -> Any:
        self.tell(value)
        return self.hear()

    def family(self) -> list[psutil.Process]:
        """The processes that it has started and that live, at any depth."""
        found = psutil.Process(self.pid).children(recursive=True)
        self.seen.update(found)
        return found

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL of the program alone, and its end waited for."""
        self.process.kill()
        self.process.wait(10.0)

    def kill_all(self) -> None:
        """SIGKILL of every process of its session at once."""
        self.family()
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10.0)

    def close(self) -> None:
        if self.process.poll() is None:
            try:
                self.family()
            except psutil.NoSuchProcess:
                pass
            self.process.kill()
            self.process.wait(10.0)
        for process in self.seen:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lives(pid: int) -> bool:
    """Is there a process of that number that has not ended? A zombie has, and what is just being reaped."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
