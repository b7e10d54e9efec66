"""Kill points of the launcher. It is Python, so they are its lines: before each a process can be killed, or stopped.

A plan is a file that the environment names. It says which process comes to which line, in which role, and what becomes
of it there: the zygote, a child that it forks for a request, its spare child, a worker in a fresh interpreter, or
whoever starts workers. Who comes there first takes the plan away, so it is carried out once. A plan may also ask each
process to note the lines that it passes.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from shmipc.memory import membership
from shmipc.runtime import children, launcher, requests, systems, worker, zygote

PLAN = "SHMIPC_TEST_PLAN"
FILES = {
    module.__file__: module.__name__.rpartition(".")[2]
    for module in (zygote, launcher, children, requests, worker, systems, membership)
}
BOOT_ZYGOTE = launcher.BOOT_ZYGOTE.replace(
    "from shmipc.runtime.zygote import main", "from tests.crash.lines import zygote_main as main"
)
BOOT_WORKER = zygote.BOOT_WORKER.replace(
    "from shmipc.runtime.worker import main", "from tests.crash.lines import worker_main as main"
)


class Tracer:
    """Follows the lines of the launcher's modules in this process.

    Args:
        role: Of this process; a child that the zygote forks finds its own.
    """

    def __init__(self, role: str) -> None:
        self.begin(role)
        os.register_at_fork(after_in_child=self.forked)
        sys.settrace(self.on_call)
        threading.settrace(self.on_call)

    def begin(self, role: str) -> None:
        self.role = role
        self.seen: set[str] = set()
        try:
            plan = json.loads(Path(os.environ[PLAN]).read_text())
        except (FileNotFoundError, ValueError):  # none, or it is being written
            plan = {}
        self.note: str | None = plan.get("note")
        self.place = plan.get("place") if plan.get("role") == role else None
        self.number = plan.get("signal")

    def forked(self) -> None:
        frame: FrameType | None = sys._getframe()
        role = "child"
        while frame is not None:
            if frame.f_code.co_name == "make_spare":
                role = "spare"
            frame = frame.f_back
        self.begin(role)

    def on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self.on_line if frame.f_code.co_filename in FILES else None

    def on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            code = frame.f_code
            place = f"{FILES[code.co_filename]}.{code.co_qualname}:{frame.f_lineno - code.co_firstlineno}"
            if place not in self.seen:
                self.seen.add(place)
                self.come_to(place)
        return self.on_line

    def come_to(self, place: str) -> None:
        if self.note is not None:
            file = os.open(self.note, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(file, f"{self.role} {place}\n".encode())
            os.close(file)
        elif place == self.place:
            try:
                os.unlink(os.environ[PLAN])
            except FileNotFoundError:
                return
            signal.pthread_kill(threading.get_ident(), self.number)


def zygote_main(connection: int, creator: int) -> NoReturn:
    """The zygote, traced, as are its children and those that it executes."""
    zygote.BOOT_WORKER = BOOT_WORKER
    Tracer("zygote")
    zygote.main(connection, creator)


def worker_main(descriptor: int) -> NoReturn:
    """A worker in a fresh interpreter, traced."""
    Tracer("fresh")
    worker.main(descriptor)
