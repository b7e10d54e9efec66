"""Ctrl-C at each place of a program at which it can come: python -m tests.runtime.interrupts SCENE FIRST STEP.

The interpreter runs signal handlers after calls and at the start of functions and of each round of a loop. For every
STEP-th such place of the main thread, from FIRST on, a child runs the scene, gets a KeyboardInterrupt there, and ends
as a program does that does not catch it; half of them get another one at some place of that end. What is printed, in
JSON: how many places there are, and what was left: a child that hung or crashed, names in /dev/shm, processes of the
child's session.
"""

import atexit
import dis
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import psutil

import shmipc
from shmipc.memory import segments
from shmipc.runtime import launcher, pools, systems  # all is imported before the first fork

__all__ = ["launcher", "pools", "systems"]

WATCHDOG = 30.0
PATIENCE = 10.0  # until the last worker of a root that left without it has ended


class Counter:
    def add(self, step: int) -> int:
        return step + 1


def system() -> None:
    with shmipc.System():
        pass


def open_system() -> None:
    shmipc.System()


def default() -> None:
    shmipc.Mailbox.create(slots=4).close()


def spawn() -> None:
    with shmipc.System() as made:
        assert made.spawn(Counter).add(1) == 2


def pool() -> None:
    with shmipc.System() as made:
        assert list(made.pool(1).map(abs, [-1, 2])) == [1, 2]


SCENES: dict[str, Callable[[], None]] = {scene.__name__: scene for scene in (system, open_system, default, spawn, pool)}


@cache
def places(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions before which the interpreter may have run a signal handler."""
    found = set()
    after = False
    for instruction in dis.get_instructions(code):
        if after or instruction.opname == "JUMP_BACKWARD":
            found.add(instruction.offset)
        after = instruction.opname == "RESUME" or instruction.opname.startswith("CALL")
    return frozenset(found)


class Interrupt:
    """Raises KeyboardInterrupt at the ``at``-th place; 0: only counts."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.where = ""

    def on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename == __file__:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self.on_step

    def on_step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and frame.f_lasti in places(frame.f_code):
            self.count += 1
            if self.count == self.at:
                self.where += " < ".join(callers(frame)) + "; "
                raise KeyboardInterrupt
        return self.on_step


def callers(frame: FrameType | None) -> list[str]:
    found: list[str] = []
    while frame is not None and frame.f_code.co_filename != __file__ and len(found) < 8:
        found.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return found


def live(scene: Callable[[], None], at: int, again: int, tell: int) -> None:
    """In the child: the scene, interrupted, and the end of a program; ``again``: its place where Ctrl-C comes again."""
    interrupt = Interrupt(at)
    error = ""
    for act in (scene, atexit._run_exitfuncs):
        if act is not scene and interrupt.where and again:
            interrupt.at = interrupt.count + again
        sys.settrace(interrupt.on_call)
        try:
            act()
        except KeyboardInterrupt:
            pass
        except BaseException as other:
            error = f"raised {other!r}"
    sys.settrace(None)
    os.write(tell, json.dumps({"count": interrupt.count, "where": interrupt.where, "error": error}).encode())
    os._exit(0)


def names() -> set[str]:
    return {name for name in os.listdir(segments.SHM) if name.startswith(segments.prefix())}


SESSION = "SHMIPC_TEST_SESSION"  # whoever begins one says so to all that it starts: a worker has a session of its own


def begin_session() -> None:
    os.environ[SESSION] = str(os.getpid())
    if os.getsid(0) != os.getpid():
        os.setsid()


def processes_of(session: int) -> Iterator[psutil.Process]:
    mark = f"{SESSION}={session}\0".encode()
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes() + b"\0"
            if os.getsid(process.pid) == session or mark in environment:
                yield process
        except (OSError, psutil.NoSuchProcess):
            continue


def others_of(session: int) -> list[str]:
    found = []
    for process in processes_of(session):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.name()}")
        except psutil.NoSuchProcess:
            continue
    return found


def run(scene: Callable[[], None], at: int, again: int = 0) -> tuple[dict[str, Any], list[str]]:
    """What the child said, and the faults."""
    before = names()
    hear, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        begin_session()
        if at and not os.environ.get("LOUD"):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # tracebacks of callbacks at exit
        live(scene, at, again, tell)
    os.close(tell)
    ended = select.poll()
    pidfd = os.pidfd_open(pid)
    ended.register(pidfd, select.POLLIN)
    faults = []
    if not ended.poll(WATCHDOG * 1000):
        faults.append(f"hung for {WATCHDOG} s")
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    with open(hear, "rb") as stream:
        os.set_blocking(hear, False)
        said = json.loads(stream.read() or b"{}")
    if status and not faults:
        faults.append(f"ended with status {status}")
    if said.get("error"):
        faults.append(said["error"])
    deadline = time.monotonic() + PATIENCE
    while (left := (names() - before, others_of(pid))) != (set(), []) and time.monotonic() < deadline:
        time.sleep(0.01)
    if left[0]:
        faults.append(f"left {sorted(left[0])}")
    if left[1]:
        faults.append(f"left {left[1]}")
    for name in left[0]:
        (segments.SHM / name).unlink(missing_ok=True)
    return said, faults


def main() -> None:
    scene, first, step = SCENES[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    said, faults = run(scene, 0)
    assert not faults, faults
    found = []
    choose = random.Random(first)
    for at in range(first, said["count"] + 1, step):
        again = choose.choice((0, choose.randrange(1, 400)))  # as often as not, an impatient user
        told, faults = run(scene, at, again)
        if faults:
            found.append([at, again, told.get("where"), *faults])
            print(found[-1], file=sys.stderr, flush=True)
    print(json.dumps({"places": said["count"], "faults": found}))


if __name__ == "__main__":
    main()
