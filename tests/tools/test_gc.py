"""``shmipc gc``: what dead systems have left goes, what lives stays."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import shmipc
from shmipc.memory import segments
from shmipc.tools import looks
from tests.programs import Program
from tests.tools.stuck import tool, tool_json

Eventually = Callable[..., None]

LEAVES = """
system = shmipc.System(sys.argv[1])
say(os.getpid())
hear()
"""


def leave(folder: Path, name: str) -> None:
    """A system whose processes were all killed."""
    with Program(folder, LEAVES, name) as program:
        program.hear()
        program.kill_all()


def test_gc_removes_what_dead_systems_have_left_and_says_so(
    system: shmipc.System, tmp_path: Path, eventually: Eventually
) -> None:
    leave(tmp_path, "dead")
    eventually(lambda: looks.look_at("dead").state == "dead")
    paths = segments.Paths.of("dead")
    code, report = tool_json("gc", "--dry-run", cwd=tmp_path)
    assert (code, report["dry_run"]) == (1, True)
    (entry,) = report["systems"]
    assert (entry["name"], entry["removed"], sorted(entry["files"])) == (
        "dead",
        False,
        sorted([str(paths.segment), str(paths.life)]),
    )
    assert entry["bytes"] > 0
    assert paths.segment.exists()
    code, doctor = tool_json("doctor", cwd=tmp_path)
    assert code == 1
    (line,) = [line for line in doctor["checks"] if line["name"] == "dead systems"]
    assert not line["ok"]
    assert "shmipc gc" in line["hint"]

    done = tool("gc", cwd=tmp_path)
    assert done.returncode == 1
    assert "removed: system dead" in done.stdout
    assert not paths.segment.exists()
    assert not paths.life.exists()
    code, report = tool_json("gc", cwd=tmp_path)
    assert (code, report["systems"]) == (0, [])
    assert segments.Paths.of(system.name).segment.exists()
    assert system.statistics().members == 1


def test_gc_gives_up_on_a_creation_lock_whose_holder_is_stopped(tmp_path: Path, eventually: Eventually) -> None:
    text = """
    from shmipc.memory import segments
    with segments.creation_lock():
        say("held")
        os.kill(os.getpid(), signal.SIGSTOP)
    say("given back")
    """
    with Program(tmp_path, text) as program:
        program.hear()
        eventually(lambda: looks._native.process_state(program.pid) == "stopped")
        done = tool("gc", cwd=tmp_path)
        assert done.returncode == 1
        assert "creation lock" in done.stderr
        assert tool("ps", cwd=tmp_path).returncode == 0  # it waits for nobody
        os.kill(program.pid, signal.SIGCONT)
        assert program.hear() == "given back"
        assert program.process.wait(30.0) == 0
    assert tool("gc", cwd=tmp_path).returncode == 0
