"""Children of supervisors; apart from the tests, so that a worker need not import pytest."""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import shmipc
from shmipc.actor import calls
from tests.programs import lives


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


class Slow(Kid):
    """Takes its time to start, and to stop."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, name)
        time.sleep(0.3)

    def on_stop(self, reason: str) -> None:
        time.sleep(0.3)
        super().on_stop(reason)


def restart(supervisor: Any, name: str) -> None:
    supervisor.restart_child(name)


class Unwatching(shmipc.Supervisor):
    """Has no room for the watch of a child that is added."""

    def start_child(self, child: shmipc.Child) -> Any:
        def monitor(ref: Any) -> NoReturn:
            raise shmipc.LimitExceeded("a monitor: a table of the system is full")

        real, calls.monitor = calls.monitor, monitor
        try:
            return super().start_child(child)
        finally:
            calls.monitor = real


class Large(Kid):
    """Has so much memory that the kernel takes a while to get it back."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, name)
        self.memory = b"x" * (256 << 20)


class Looking(shmipc.Supervisor):
    """Writes down of each start whether the life before is still there."""

    def __init__(self, path: str, children: Any) -> None:
        self.path, self.last = path, 0
        super().__init__(children)

    def _start(self, place: Any) -> None:
        note(self.path, f"restart, lives {lives(self.last)}" if self.last else "first start")
        super()._start(place)
        self.last = place.process.pid


class Logging(shmipc.Supervisor):
    """Writes its log to a file."""

    def __init__(self, path: str, children: Any, **options: Any) -> None:
        logging.getLogger("shmipc.supervisor").addHandler(logging.FileHandler(path))
        super().__init__(children, **options)


class Failing(Kid):
    """Fails in its start, in one way, as often as a file says."""

    def __init__(self, path: str, name: str, way: str, left: str) -> None:
        super().__init__(path, name)
        count = int(Path(left).read_text())
        if count == 0:
            return
        Path(left).write_text(str(count - 1))
        if way == "raises late":
            time.sleep(0.3)
        if way.startswith("raises"):
            raise LookupError(f"{name} cannot start")
        if way == "times out":
            raise shmipc.Timeout("its own")
        if way == "taken":
            raise shmipc.NameTaken("a mailbox of its own")
        if way == "closed":
            raise shmipc.Closed("a mailbox that it reads is closed")
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
