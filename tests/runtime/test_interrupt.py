"""Ctrl-C in a terminal: it goes to the whole process group, and only the root minds."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import shmipc
from tests.terminal import Terminal, names

HEAD = """
import os, sys, time, threading
import shmipc
from shmipc import Mailbox

class Counter:
    def __init__(self, start):
        self.number = start
    def add(self, step):
        self.number += step
        return self.number
    def sleep(self):
        time.sleep(1000)
    def wait(self):
        shmipc.receive(tag=1)
    def work(self):
        while True:
            self.number += 1

def serve():
    while True:
        shmipc.receive()

def slow(item):
    time.sleep(1000)

def tell_and_be_slow(item):
    print("at work", item, flush=True)
    time.sleep(1000)
"""

# Each prints "ready" when it is about to block. The first three lines of a world are those of every program.
WORLD = """
with shmipc.System() as system:
    idle, sleeper, worker = (system.spawn(Counter, n) for n in range(3))
    server = system.spawn(serve)
    mailbox = Mailbox.create("named", slots=4)
    array = shmipc.zeros(1_000_000)
    sleeper.sleep.cast()
    worker.work.cast()
    assert idle.add(1) == 1
    pool = system.pool(2)
    print("ready", flush=True)
    {blocked}
"""
BLOCKED = {
    "call": "worker.add(1)",
    "sleep": "time.sleep(1000)",
    "busy": "n = 0\n    while True: n += 1",
    "receive": "shmipc.receive()",
    "mailbox": "mailbox.receive()",
    "future": "sleeper.add.submit(1).result()",
    "map": "list(pool.map(slow, range(1000)))",
    "lazy map": "for value in pool.map(slow, iter(range(10**9)), chunksize=10): pass",
    "spawn": "system.spawn(Counter.sleep, None)\n    shmipc.receive()",
    "nested": "system.spawn(Counter, 1).wait.cast()\n    time.sleep(1000)",
    "join": "shmipc.process(idle).join()",
}


def gone(everybody: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in everybody)


def check_quiet(text: str) -> None:
    """One traceback, the root's own, that ends in KeyboardInterrupt; nothing else was said."""
    assert text.count("Traceback (most recent call last)") == 1, text
    assert text.count("KeyboardInterrupt") == 1, text
    lines = [line for line in re.sub(r"\^C", "", text).replace("\r", "").split("\n") if line.strip()]
    assert lines[0] == "ready"
    assert lines[1].startswith("Traceback"), text
    assert lines[-1] == "KeyboardInterrupt", text
    assert all(line.startswith("  ") for line in lines[2:-1]), text


@pytest.mark.row("M12")
@pytest.mark.parametrize("blocked", BLOCKED)
def test_ctrl_c_ends_a_program_quietly_promptly_and_without_remains(
    tmp_path: Path, blocked: str, eventually: Callable[..., None]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(HEAD + WORLD.format(blocked=BLOCKED[blocked]))
    with Terminal(sys.executable, str(program)) as terminal:
        terminal.wait_for("ready\r\n")
        time.sleep(0.2)  # it blocks, or is about to
        everybody = terminal.descendants()
        assert len(everybody) >= 7, "the zygote, four actors, two workers of the pool"
        pressed = time.monotonic()
        terminal.press("\x03")
        code = terminal.wait()
        assert time.monotonic() - pressed < 10
        assert code in (-2, 130)
        check_quiet(terminal.text)
        eventually(lambda: gone(everybody))
    assert names() == set()


@pytest.mark.row("M12")
def test_ctrl_c_without_a_with_block_leaves_nothing_either(tmp_path: Path, eventually: Callable[..., None]) -> None:
    program = tmp_path / "program.py"
    body = WORLD.replace("with shmipc.System() as system:", "if system := shmipc.System():")
    program.write_text(HEAD + body.format(blocked="worker.add(1)"))
    with Terminal(sys.executable, str(program)) as terminal:
        terminal.wait_for("ready\r\n")
        everybody = terminal.descendants()
        pressed = time.monotonic()
        terminal.press("\x03")
        code = terminal.wait()
        assert time.monotonic() - pressed < 10
        assert code in (-2, 130)
        check_quiet(terminal.text)
        eventually(lambda: gone(everybody))
    assert names() == set()


@pytest.mark.row("M12")
def test_program_that_catches_ctrl_c_goes_on_with_all_its_actors(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        HEAD
        + """
with shmipc.System() as system:
    counter = system.spawn(Counter, 10)
    pool = system.pool(2)
    for number in range(3):
        try:
            print("ready", number, flush=True)
            list(pool.map(tell_and_be_slow, [number])) if number < 2 else shmipc.receive()
        except KeyboardInterrupt:
            print("caught", number, counter.add(5), flush=True)
    fresh = system.spawn(Counter, 1)
    print("sum", counter.add(1) + fresh.add(1), system.pool(1).submit(abs, -3).result(10), flush=True)
    for ref in pool.refs:
        shmipc.process(ref).kill()
print("the end", flush=True)
"""
    )
    with Terminal(sys.executable, str(program)) as terminal:
        for number in range(3):
            terminal.wait_for(f"at work {number}" if number < 2 else "ready 2")
            time.sleep(0.1)
            terminal.press("\x03")
            terminal.wait_for(f"caught {number} {15 + 5 * number}")
        terminal.wait_for("sum 28 3")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.text
        assert "the end" in terminal.text
    assert names() == set()


@pytest.mark.race
@pytest.mark.row("M12")
@pytest.mark.parametrize("pause", [0.0, 0.02, 0.1, 0.3])
def test_ctrl_c_pressed_again_and_again_leaves_nothing(
    tmp_path: Path, pause: float, eventually: Callable[..., None]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(HEAD + WORLD.format(blocked="list(pool.map(slow, range(1000)))"))
    with Terminal(sys.executable, str(program)) as terminal:
        terminal.wait_for("ready\r\n")
        everybody = terminal.descendants()
        pressed = time.monotonic()
        for _ in range(5):
            terminal.press("\x03")
            time.sleep(pause)
        code = terminal.wait()
        assert time.monotonic() - pressed < 15
        assert code != 0
        eventually(lambda: gone(everybody))
    with shmipc.System():
        pass  # the next start removes what an impatient user left
    assert names() == set()


@pytest.mark.race
@pytest.mark.row("M12")
@pytest.mark.parametrize("delay", [0.05, 0.15, 0.25, 0.35, 0.5])
def test_ctrl_c_while_a_program_starts_leaves_nothing(
    tmp_path: Path, delay: float, eventually: Callable[..., None]
) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('begun', flush=True)\n" + HEAD + WORLD.format(blocked="shmipc.receive()"))
    with Terminal(sys.executable, str(program)) as terminal:
        terminal.wait_for("begun")
        time.sleep(delay)
        everybody = terminal.descendants()
        pressed = time.monotonic()
        terminal.press("\x03")
        assert terminal.wait() in (-2, 130, 1)
        assert time.monotonic() - pressed < 10
        eventually(lambda: gone(everybody))
        eventually(lambda: names() == set())
