"""Processes of plain users, which a test tells what to do; root is needed to start them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until

FIRST_UID = 61_000  # nobody's


class Refused(Exception):
    """What a user's process raised; `kind` is its class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class User:
    """A process of uid ``FIRST_UID + number``, in these groups beside its own."""

    def __init__(self, number: int, *groups: int) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can start processes of other users")
        self.uid = FIRST_UID + number
        program = Path(__file__).with_name("stranger.py")
        self.child = subprocess.Popen(
            [sys.executable, "-P", str(program), str(self.uid), *map(str, groups)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        self.pid = self.child.pid

    def _tell(self, text: str, value: bool) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps({"text": text, "value": value}) + "\n")
        self.child.stdin.flush()

    def answer(self) -> Any:
        """Of what was told with `begin`."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line, f"the process of uid {self.uid} has ended: {self.child.wait(10)}"
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"], answer["text"])
        return answer["value"]

    def begin(self, text: str) -> None:
        """Have it find a value, and go on meanwhile."""
        self._tell(text, True)

    def value(self, text: str) -> Any:
        """Of an expression, as JSON has it; raises Refused."""
        self.begin(text)
        return self.answer()

    def do(self, text: str) -> None:
        """Statements; raises Refused."""
        self._tell(text, False)
        self.answer()

    def refused(self, text: str) -> str:
        """The class of the exception that these statements raise."""
        try:
            self.do(text)
        except Refused as error:
            return error.kind
        raise AssertionError(f"not refused: {text}")

    def close(self) -> None:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            self.child.stdin.close()
        except OSError:
            pass
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait(10)
        self.child.stdout.close()

    def stop(self) -> None:
        """SIGSTOP, and wait until each of its threads has stopped."""
        self.child.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        assert wait_until(lambda: all("\nState:\tT" in (t / "status").read_text() for t in tasks.iterdir()), 20)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait(10)

    def __enter__(self) -> "User":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
