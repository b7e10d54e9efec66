"""``shmipc stack``: the Python stacks of every member, told by itself, whatever it is stuck in."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc.tools import ps
from tests.programs import lives
from tests.tools.stuck import Stuck, member, tool, tool_json

Eventually = Callable[..., None]


def functions(entry: dict[str, Any]) -> set[str]:
    return {frame["function"] for thread in entry["threads"] for frame in thread["frames"]}


def runs(system: shmipc.System, pid: int) -> list[str]:
    systems, _ = ps.run([system.name], 10.0)
    return [thread["runs"] for thread in member(systems, pid)["threads"] if thread["runs"] is not None]


@pytest.mark.row("M18")
@pytest.mark.allows_rescue
def test_stack_shows_every_member_without_the_right_to_trace(
    system: shmipc.System, tmp_path: Path, eventually: Eventually
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    narrow = shmipc.Mailbox.create(slots=1)
    names = ("hidden", "holder", "filler", "halted", "idle")
    actors: dict[str, Any] = {name: system.options(name=name).spawn(Stuck) for name in names}
    pids = {name: actor.pid() for name, actor in actors.items()}
    for name in ("hidden", "holder", "filler"):
        actors[name].hide()  # as a process of which nobody may see the memory or the descriptors
    actors["holder"].hold_lock_in_c.submit(str(fifo))
    actors["filler"].fill.submit(narrow)
    os.kill(pids["halted"], signal.SIGSTOP)
    try:
        eventually(lambda: runs(system, pids["holder"]) == ["hold_lock_in_c"] and len(narrow) == 1, 60.0)
        code, systems = tool_json("stack", cwd=tmp_path)
        assert code == 1  # one did not tell
        told = {name: member(systems, pid) for name, pid in pids.items()}
        assert {name: entry["status"] for name, entry in told.items()} == {
            "hidden": "told",
            "holder": "told",
            "filler": "told",
            "halted": "stopped",
            "idle": "told",
        }
        assert "fill" in functions(told["filler"])
        assert "hold_lock_in_c" in functions(told["holder"])
        assert "serve" in functions(told["idle"]) & functions(told["hidden"])
        assert [told[name]["lock_free"] for name in names] == [True, False, True, None, True]
        (frame, *_) = [
            frame for thread in told["filler"]["threads"] for frame in thread["frames"] if frame["function"] == "fill"
        ]
        assert frame["line"] > 0
        own = member(systems, os.getpid())
        assert "test_stack_shows_every_member_without_the_right_to_trace" in functions(own)

        text = tool("stack", pids["holder"], cwd=tmp_path)
        assert text.returncode == 0
        assert "hold_lock_in_c" in text.stdout
        assert "lock is held" in text.stdout
        assert str(pids["idle"]) not in text.stdout
        assert tool("stack", 1, cwd=tmp_path).returncode == 1  # no member
        # It goes on as if nothing had been.
        for _ in range(3):
            assert tool_json("stack", pids["holder"], cwd=tmp_path)[0] == 0
        assert runs(system, pids["holder"]) == ["hold_lock_in_c"]
    finally:
        os.kill(pids["halted"], signal.SIGCONT)
        descriptor = os.open(fifo, os.O_RDWR)
        os.write(descriptor, b"1")
        actors["holder"].echo.call(1, timeout=60.0)
        os.close(descriptor)
    assert actors["holder"].echo(5) == 5
    assert actors["hidden"].echo(6) == 6
    assert actors["halted"].echo(7) == 7
    assert narrow.receive() == b"more"


def test_stack_does_not_end_a_wait_that_a_signal_would_end(
    system: shmipc.System, tmp_path: Path, eventually: Eventually
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    actor: Any = system.spawn(Stuck)
    pid = actor.pid()
    future = actor.wait_in_c.submit(str(fifo))
    eventually(lambda: runs(system, pid) == ["wait_in_c"])
    for _ in range(3):
        code, systems = tool_json("stack", pid, cwd=tmp_path)
        assert code == 0
        assert "wait_in_c" in functions(member(systems, pid))
    assert not future.done()
    descriptor = os.open(fifo, os.O_RDWR)
    os.write(descriptor, b"1")
    assert future.result(60.0) == (1, 0)
    os.close(descriptor)


def test_stack_leaves_a_program_that_uses_the_signal_itself_in_peace(
    system: shmipc.System, tmp_path: Path, eventually: Eventually
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    actor: Any = system.spawn(Stuck)
    pid = actor.pid()
    actor.take_urgent()
    code, systems = tool_json("stack", pid, cwd=tmp_path)
    assert (code, member(systems, pid)["lock_free"]) == (0, True)
    assert "serve" in functions(member(systems, pid))
    future = actor.hold_lock_in_c.submit(str(fifo))
    eventually(lambda: runs(system, pid) == ["hold_lock_in_c"])
    code, systems = tool_json("stack", pid, cwd=tmp_path)
    assert (code, member(systems, pid)["lock_free"], member(systems, pid)["threads"]) == (0, False, [])
    descriptor = os.open(fifo, os.O_RDWR)
    os.write(descriptor, b"1")
    future.result(60.0)
    os.close(descriptor)
    assert lives(pid)
    assert actor.urgent_count() == 0


def test_member_that_has_left_the_system_has_no_door_and_no_thread_more(tmp_path: Path, eventually: Eventually) -> None:
    """Opening and leaving gives descriptors and threads back, also when somebody has asked meanwhile."""
    before = set(os.listdir("/proc/self/task"))
    for _ in range(3):
        with shmipc.System() as system:
            code, systems = tool_json("stack", system.name, cwd=tmp_path)
            assert (code, member(systems, os.getpid())["status"]) == (0, "told")
    eventually(lambda: set(os.listdir("/proc/self/task")) <= before)
    assert signal.getsignal(signal.SIGURG) == signal.SIG_DFL
