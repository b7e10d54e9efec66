"""Actors that get stuck in every way there is, and the command line as a process of its own."""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import shmipc

TOOL_SECONDS = 60.0


class Stuck:
    """An actor that blocks on demand."""

    def __init__(self) -> None:
        self.other: Any = None

    def pid(self) -> int:
        return os.getpid()

    def meet(self, other: Any) -> None:
        self.other = other

    def call_other(self, seconds: float | None) -> Any:
        return self.other.call_back.call(seconds, timeout=seconds)

    def call_back(self, seconds: float | None) -> Any:
        return self.other.pid.call(timeout=seconds)

    def hold_lock_in_c(self, descriptor_path: str) -> None:
        """In C code, with the interpreter's lock, until the fifo is written to."""
        descriptor = os.open(descriptor_path, os.O_RDWR)
        ctypes.PyDLL(None).read(descriptor, ctypes.create_string_buffer(1), 1)
        os.close(descriptor)

    def fill(self, mailbox: shmipc.Mailbox) -> None:
        while True:
            mailbox.send(b"more")

    def wait_in_c(self, descriptor_path: str) -> tuple[int, int]:
        """A wait of a C library that a signal would end: result of poll(2), and errno."""
        descriptor = os.open(descriptor_path, os.O_RDWR)
        library = ctypes.CDLL(None, use_errno=True)
        asked = (ctypes.c_byte * 8)()
        ctypes.memmove(asked, (descriptor).to_bytes(4, "little") + select.POLLIN.to_bytes(2, "little") + b"\0\0", 8)
        ctypes.set_errno(0)
        result = library.poll(asked, 1, -1)
        os.close(descriptor)
        return int(result), ctypes.get_errno()

    def hide(self) -> None:
        """No other process may trace this one, nor read its memory or descriptors."""
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE

    def take_urgent(self) -> None:
        """This program wants the signal for itself."""
        signal.signal(signal.SIGURG, self.count_urgent)

    urgent = 0

    def count_urgent(self, number: int, frame: Any) -> None:
        Stuck.urgent += 1

    def urgent_count(self) -> int:
        return Stuck.urgent

    def echo(self, value: Any) -> Any:
        return value


def tool(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line; its text and exit code."""
    command = [sys.executable, "-P", "-m", "shmipc", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TOOL_SECONDS, cwd=cwd, env=dict(os.environ) | (env or {})
    )


def tool_json(*arguments: object, cwd: Path) -> tuple[int, Any]:
    """Run it with --json; exit code and what it printed. Nothing on stderr."""
    done = tool(*arguments, "--json", cwd=cwd)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def member(systems: list[dict[str, Any]], pid: int) -> dict[str, Any]:
    """The entry of a process."""
    (found,) = [entry for system in systems for entry in system["members"] if entry["pid"] == pid]
    return dict(found)
