"""Children of supervisors; apart from the tests, so that a worker need not import pytest."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import shmipc


def note(path: str, what: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{what}\n".encode())
    os.close(descriptor)


def noted(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


class Kid:
    """Writes down when it starts and stops."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        note(path, f"start {name}")

    def pid(self) -> int:
        return os.getpid()

    def leave(self, code: int) -> None:
        raise SystemExit(code)

    def wait_for_ever(self, told: Any = None) -> None:
        if told is not None:
            shmipc.send(told, "waits")
        threading.Event().wait()

    def pending(self) -> int:
        return shmipc.pending()

    def tick_soon(self, seconds: float) -> None:
        shmipc.send_after(seconds, shmipc.self(), "tick")

    def on_message(self, message: shmipc.Message) -> None:
        note(self.path, f"message {self.name} {message.body}")

    def on_stop(self, reason: str) -> None:
        note(self.path, f"stop {self.name}")


class Failing(Kid):
    """Fails in its start, in one way, as often as a file says."""

    def __init__(self, path: str, name: str, way: str, left: str) -> None:
        super().__init__(path, name)
        count = int(Path(left).read_text())
        if count == 0:
            return
        Path(left).write_text(str(count - 1))
        if way == "raises":
            raise LookupError(f"{name} cannot start")
        if way == "hangs":
            threading.Event().wait()
        os.kill(os.getpid(), signal.SIGKILL)


class Owner(Kid):
    """Has a pool."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, name)
        self.pool = shmipc.System.current().pool(2)

    def workers(self) -> list[int]:
        return [shmipc.process(ref).pid for ref in self.pool.refs]

    def work(self, numbers: list[int]) -> list[int]:
        return list(self.pool.map(abs, numbers))


def give_up(path: str) -> Any:
    def noted_error(error: shmipc.TooManyRestarts) -> None:
        note(path, f"given up {error.restarts} {error.period:g}")

    return noted_error


def return_at_once(path: str) -> None:
    note(path, "ran")
