"""A pseudo terminal with a program in it, as a user has one: its own session, and Ctrl-C for the process group."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Any, Self

import psutil


def environment(**more: str) -> dict[str, str]:
    """That of this process, in which programs find the same shmipc."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "COLUMNS": "80"} | more


def names() -> set[str]:
    """What this test process and its programs have in shared memory."""
    return {name for name in os.listdir("/dev/shm") if os.environ["SHMIPC_NAMESPACE"] in name}


def take_terminal() -> None:
    """In the child: the terminal is its own, and Ctrl-C does there what it does for a user.

    A shell that runs the tests in the background has its jobs ignore SIGINT, and they hand that down.
    """
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """Runs a command in a terminal of 80 columns.

    Args:
        arguments: The command.
        cwd: Its working directory.
    """

    def __init__(self, *arguments: str, cwd: Any = None) -> None:
        self.near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.text = ""
        self.process = subprocess.Popen(
            arguments,
            stdin=far,
            stdout=far,
            stderr=far,
            cwd=cwd,
            env=environment(TERM="xterm"),
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(far)

    def read(self, seconds: float) -> bool:
        """Take what comes within so many seconds; False at the end."""
        if not select.select([self.near], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.near, 65_536)
        except OSError:  # nobody has the other side open
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} did not come within {seconds} s in {self.text!r}"
            assert self.read(0.1) or text in self.text, f"the program ended without {text!r}: {self.text!r}"

    def press(self, keys: str) -> None:
        """Keys of a user; \\x03 is Ctrl-C."""
        os.write(self.near, keys.encode())

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self, seconds: float = 60.0) -> int:
        """The exit code, when the program has ended and everybody has let go of the terminal."""
        deadline = time.monotonic() + seconds
        while self.read(0.1):
            assert time.monotonic() < deadline, f"it still runs after {seconds} s: {self.text!r}"
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.near)
