"""Kills or stops processes at lines of the launcher: python -m tests.crash.launches SCENE FIRST STEP SIGNAL.

For every STEP-th line, from FIRST on, of those that a scene passes, the scene is played; who comes to the line gets the
signal there. What is printed, in JSON: how many lines there are, in which functions, how many were not passed again,
and what was wrong: a start that failed though nobody it needs has died, a process, member, lease or name that is left.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import shmipc
from shmipc.memory import segments
from shmipc.runtime import launcher
from tests.actors import Actor, usage
from tests.crash import lines
from tests.runtime.interrupts import begin_session, names, others_of, processes_of

PATIENCE = 15.0
START_SECONDS = 3.0  # of a start when somebody is stopped at it; longer than a zygote waits for its spare child
ROOT = "launches"


class Plan:
    """What is to become of whom, where; see `lines`."""

    def __init__(self, folder: Path) -> None:
        self.path, self.notes = folder / "plan", folder / "notes"
        os.environ[lines.PLAN] = str(self.path)
        launcher.BOOT_ZYGOTE = lines.BOOT_ZYGOTE

    def write(self, **plan: Any) -> None:
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(plan))
        draft.rename(self.path)

    def waits(self) -> bool:
        return self.path.exists()

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)

    def noted(self) -> list[tuple[str, str]]:
        """Role and place of each line that was passed since the last question."""
        text = self.notes.read_text() if self.notes.exists() else ""
        self.notes.unlink(missing_ok=True)
        found = [line.split() for line in text.splitlines()]
        return list(dict.fromkeys((role, place) for role, place in found))


def eventually(condition: Callable[[], object], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.005)


# --- the zygote, its children, its spare child -----------------------------------------------------------------


class Workers:
    """A creator that starts workers, in each way, and ends its zygote."""

    def __init__(self, plan: Plan, system: shmipc.System) -> None:
        self.plan, self.system = plan, system
        self.bystander: Any = system.spawn(Actor)
        self.pid = self.bystander.pid()
        self.acts: tuple[Callable[[], None], ...] = (self.fork, self.spare, self.fresh, self.end)
        self.stops = False
        self.spared = True  # nobody has died yet at whose end a start may fail
        self.before = self.usage()

    def usage(self) -> dict[str, int]:
        return {**usage(self.system, self.bystander), "undelivered": 0}

    def fork(self) -> None:
        for child in self.children("shm:spare"):
            child.kill()
        self.start(None)

    def spare(self) -> None:
        self.await_spare()
        self.start(None)

    def fresh(self) -> None:
        self.start({"OMP_NUM_THREADS": "1"})

    def end(self) -> None:
        launcher.launcher().drop_zygote(1.0)

    def children(self, name: str) -> list[psutil.Process]:
        pid = launcher.launcher().zygote_pid()
        found = []
        for child in psutil.Process(pid).children() if pid else []:
            try:
                if child.name() == name:
                    found.append(child)
            except psutil.NoSuchProcess:
                pass
        return found

    def await_spare(self) -> None:
        """Until there is one, or will be none."""
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline and self.plan.waits():
            if any(child.status() == psutil.STATUS_SLEEPING for child in self.children("shm:spare")):
                return
            time.sleep(0.002)

    def start(self, env: dict[str, str] | None) -> None:
        """Start a worker and end it. When somebody was killed or stopped at it, it may fail once."""
        options = self.system.options(name="started", env=env, start_timeout=START_SECONDS if self.stops else None)
        for _ in range(2):
            try:
                ref: Any = options.spawn(Actor)
                process = shmipc.process(ref)
                assert ref.pid.call(timeout=PATIENCE) == process.pid
                process.stop(START_SECONDS)
                self.go_on()
                assert process.join(PATIENCE)
                return
            except (shmipc.PeerDead, shmipc.Timeout):
                if self.plan.waits() or not self.spared:
                    raise
                self.spared = False
                self.go_on()

    def go_on(self) -> None:
        """Have those go on who are stopped."""
        for process in processes_of(os.getpid()) if self.stops else ():
            try:
                if process.status() == psutil.STATUS_STOPPED:
                    process.resume()
            except psutil.NoSuchProcess:
                continue

    def renew_zygote(self) -> None:
        zygote = launcher.launcher().zygote
        if zygote is not None:
            zygote.kill()
            zygote.wait()

    def record(self) -> list[tuple[str, str, int]]:
        """Role, place and the act that first comes there."""
        self.plan.write(note=str(self.plan.notes))
        self.renew_zygote()
        found: dict[tuple[str, str], int] = {}
        for number, act in enumerate(self.acts):
            act()
            for passed in self.plan.noted():
                found.setdefault(passed, number)
        self.plan.drop()
        return [(role, place, number) for (role, place), number in found.items()]

    def play(self, role: str, place: str, act: int, number: int) -> bool:
        """Was the line passed?"""
        self.stops, self.spared = number == signal.SIGSTOP, True
        self.plan.write(role=role, place=place, signal=number)
        if role == "zygote":
            self.renew_zygote()
        if role in ("zygote", "spare"):  # a spare child is made, and prepares itself, behind the first act
            acts = self.acts[: max(act, 1) + 1]
        else:
            acts = self.acts[act : act + 1]
        for each in acts:
            each()
        self.go_on()
        passed = not self.plan.waits()
        self.plan.drop()
        assert self.bystander.pid.call(timeout=PATIENCE) == self.pid
        eventually(lambda: self.usage() == self.before, lambda: f"{self.usage()} after, {self.before} before")
        again: Any = self.system.options(name="started").spawn(Actor)  # the name is free, and answers are not mixed up
        assert again.pid() == shmipc.process(again).pid
        assert shmipc.process(again).stop()
        return passed


def drive_workers(plan: Plan, first: int, step: int, number: int) -> dict[str, Any]:
    with shmipc.System() as system:
        stage = Workers(plan, system)
        found = stage.record()
        told = play_all(
            [(f"{role} {place}", role, place, act) for role, place, act in found],
            lambda role, place, act: stage.play(role, place, act, number),
            first,
            step,
        )
    eventually(lambda: others_but_me() == [], others_but_me)
    return told


def others_but_me() -> list[str]:
    return [entry for entry in others_of(os.getpid()) if int(entry.split()[0]) != os.getpid()]


def play_all(points: list[Any], play: Callable[..., bool], first: int, step: int) -> dict[str, Any]:
    faults: list[list[str]] = []
    missed = []
    for text, *arguments in points[first::step]:
        if os.environ.get("LOUD"):
            print(f"{time.monotonic():.2f} {text}", file=sys.stderr, flush=True)
        try:
            if not play(*arguments):
                missed.append(text)
        except Exception:
            faults.append([text, traceback.format_exc()])
            print(*faults[-1], file=sys.stderr, flush=True)
        if len(faults) > 3:
            break
    functions = {text.rpartition(":")[0].split()[1] for text, *_ in points}
    return {
        "places": len(points),
        "played": len(points[first::step]),
        "functions": sorted(functions),
        "missed": missed,
        "faults": faults,
    }


# --- who starts them -------------------------------------------------------------------------------------------


def attached() -> None:
    system = shmipc.System.attach(ROOT)
    ref: Any = system.spawn(Actor)
    assert ref.pid()
    system.shutdown()


def rooted() -> None:
    with shmipc.System() as system:
        ref: Any = system.spawn(Actor)
        assert ref.pid()


def deserted() -> None:
    """Its zygote cleans up after it."""
    system = shmipc.System()
    for _ in range(2):
        ref: Any = system.spawn(Actor)
        assert ref.pid()
    os.kill(os.getpid(), signal.SIGKILL)


class Creators:
    """Processes that start workers, each once, and what they leave."""

    def __init__(self, plan: Plan, scene: Callable[[], None], root: "subprocess.Popen[str] | None") -> None:
        self.plan, self.scene, self.root = plan, scene, root
        self.before = self.usage()

    def usage(self) -> str:
        """Of the root's system, in which another worker answers; of none."""
        if self.root is None:
            return ""
        assert self.root.stdin is not None
        assert self.root.stdout is not None
        print("usage", file=self.root.stdin, flush=True)
        return self.root.stdout.readline()

    def record(self) -> list[tuple[str, str]]:
        self.plan.write(note=str(self.plan.notes))
        self.live()
        self.plan.drop()
        return self.plan.noted()

    def play(self, role: str, place: str) -> bool:
        self.plan.write(role=role, place=place, signal=signal.SIGKILL)
        self.live()
        passed = not self.plan.waits()
        self.plan.drop()
        return passed

    def live(self) -> None:
        """A child plays the scene."""
        was = names()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                begin_session()
                lines.Tracer("creator")
                self.scene()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pidfd = os.pidfd_open(pid)
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        hung = not ended.poll(PATIENCE * 2000)
        os.close(pidfd)
        if hung:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert not hung, "it hung"
        assert status in (0, signal.SIGKILL), f"it ended with {status}"
        eventually(lambda: others_of(pid) == [], lambda: others_of(pid))
        segments.sweep()  # as the next start does, if its zygote has died too
        eventually(lambda: names() == was, lambda: names() - was)
        eventually(lambda: self.usage() == self.before, lambda: f"{self.usage()} after, {self.before} before")


def drive_creators(plan: Plan, scene: Callable[[], None], first: int, step: int) -> dict[str, Any]:
    root = None
    if scene is attached:
        root = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.crash.launches", "root"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        stage = Creators(plan, scene, root)
        found = stage.record()
        if scene is deserted:
            ordered = Creators(plan, rooted, None).record()
            wanted = [entry for entry in found if entry[0] == "zygote" and entry not in ordered]
        else:
            wanted = [entry for entry in found if entry[0] == "creator"]
        return play_all([(f"{role} {place}", role, place) for role, place in wanted], stage.play, first, step)
    finally:
        if root is not None:
            root.communicate(timeout=PATIENCE)  # the end of its input ends it


def be_root() -> None:
    with shmipc.System(ROOT) as system:
        bystander: Any = system.spawn(Actor)
        for _ in sys.stdin:
            print(bystander.pid() > 0, {**usage(system, bystander), "undelivered": 0}, flush=True)


SCENES: dict[str, Callable[[], None]] = {scene.__name__: scene for scene in (attached, rooted, deserted)}


def main() -> None:
    if sys.argv[1] == "root":
        be_root()
        return
    begin_session()
    first, step, number = (int(value) for value in sys.argv[2:5])
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(folder))
        if sys.argv[1] == "workers":
            told = drive_workers(plan, first, step, number)
        else:
            told = drive_creators(plan, SCENES[sys.argv[1]], first, step)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
