"""The fixtures that watch every test do see what they are there for: each sample leaks on purpose."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_sample(folder: Path, body: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run one test of its own pytest under a copy of our conftest.py."""
    shutil.copy(HERE / "conftest.py", folder)
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    row(*names): rows\n    race: race\n    allows_rescue: rescue\n"
    )
    head = "import os, socket, subprocess, sys, time\nimport pytest\nKEPT = []\n\n" + MARK.get(body, "")
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (folder / "test_sample.py").write_text(f"{head}def test_sample():\n{lines}")
    command = [sys.executable, "-m", "pytest", "--import-mode=importlib", "-p", "no:xdist", "--patience=0.3"]
    return subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, timeout=100, check=False, env=ENVIRONMENT
    )


ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "SHMIPC_"))}
NAME = "open(f'/dev/shm/shmipc.0.{os.environ[\"SHMIPC_NAMESPACE\"]}~x', 'w').close()"
CHILD = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
ORPHAN = (
    "subprocess.run([sys.executable, '-c', 'import subprocess, sys; "
    'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\'])'
)
ZOMBIE = "os._exit(0) if os.fork() == 0 else None"
DESCRIPTOR = "KEPT.append(socket.socket())"
RESCUE = "import shmipc._native as n\ncounts = iter([1])\nn.take_rescued = lambda: next(counts, 0)"
ALLOWED = RESCUE + "\n# on purpose"
MARK = {ALLOWED: "@pytest.mark.allows_rescue\n"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (NAME, "name /dev/shm/shmipc.0.t"),
        (CHILD, "time.sleep(60)"),
        (ORPHAN, "time.sleep(60)"),
        (ZOMBIE, "zombie"),
        (DESCRIPTOR, "descriptor"),
        (RESCUE, "1 rescued waits"),
        (f"{NAME}\n{DESCRIPTOR}", "descriptor"),
    ],
    ids=["name", "child", "orphan", "zombie", "descriptor", "rescue", "several"],
)
def test_leak_is_an_error_that_says_what_was_left(tmp_path: Path, body: str, told: str) -> None:
    done = run_sample(tmp_path, body)
    assert "the test left" in done.stdout, done.stdout
    assert told in done.stdout
    assert "1 passed, 1 error" in done.stdout
    assert "the session left" not in done.stdout  # so it was removed


@pytest.mark.parametrize("body", ["pass", ALLOWED, "subprocess.run(['true'])"], ids=["idle", "allowed", "waited"])
def test_clean_test_passes(tmp_path: Path, body: str) -> None:
    done = run_sample(tmp_path, body)
    assert done.returncode == 0, done.stdout


def test_name_made_outside_the_namespace_is_an_error_of_the_session(tmp_path: Path) -> None:
    name = Path(f"/dev/shm/shmipc-sample{os.getpid()}")  # as no system's: another program of this user would sweep it
    try:
        done = run_sample(tmp_path, f"open('{name}', 'w').close()")
    finally:
        name.unlink()
    assert f"name {name}, made outside the namespace" in done.stdout


def test_hang_ends_with_the_stacks_of_child_processes(tmp_path: Path) -> None:
    child = "def wait_for_ever(): time.sleep(60)"
    body = f'code = "import time\\n{child}\\nprint(1, flush=True)\\nwait_for_ever()"\n'
    body += "p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)\np.stdout.read(1)\np.wait()"
    done = run_sample(tmp_path, body, "--timeout", "2", "--timeout-method", "signal")
    assert "in wait_for_ever" in done.stdout + done.stderr, done.stdout
    assert "Timeout" in done.stdout


def test_test_runs_as_often_as_repeat_says(tmp_path: Path) -> None:
    assert "5 passed" in run_sample(tmp_path, "pass", "--repeat", "5").stdout
