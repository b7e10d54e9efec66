"""The fixtures that watch every test do see what they are there for: each sample leaks on purpose."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


def run_sample(folder: Path, *bodies: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run tests, one of each body, in a pytest of their own under a copy of our conftest.py."""
    shutil.copy(HERE / "conftest.py", folder)
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    row(*names): rows\n    race: race\n    allows_rescue: rescue\n"
    )
    text = "import os, socket, subprocess, sys, time\nimport pytest\nKEPT = []\n"
    for number, body in enumerate(bodies):
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        text += f"\n\n{MARK.get(body, '')}def test_sample_{number}():\n{lines}"
    (folder / "test_sample.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "--import-mode=importlib", "-p", "pytest_timeout", "--patience=0.3"]
    return subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, timeout=100, check=False, env=ENVIRONMENT
    )


ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "SHMIPC_"))}
ENVIRONMENT["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # their imports take most of a short run
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


LEAKS = {
    NAME: ["name /dev/shm/shmipc.0.t"],
    CHILD: ["time.sleep(60)"],
    ORPHAN: ["time.sleep(60)"],
    ZOMBIE: ["zombie"],
    DESCRIPTOR: ["descriptor"],
    RESCUE: ["1 rescued waits"],
    f"{NAME}\n{DESCRIPTOR}": ["descriptor", "name /dev/shm/shmipc.0.t"],
}


def test_leak_is_an_error_that_says_what_was_left(tmp_path: Path) -> None:
    done = run_sample(tmp_path, *LEAKS)
    assert f"{len(LEAKS)} passed, {len(LEAKS)} errors" in done.stdout, done.stdout
    reports = done.stdout.split("_ ERROR at teardown of test_sample_")[1:]
    for report, told in zip(reports, LEAKS.values(), strict=True):
        assert "the test left" in report
        assert all(text in report for text in told), (told, report)
    assert "the session left" not in done.stdout  # so it was removed


def test_clean_tests_pass(tmp_path: Path) -> None:
    done = run_sample(tmp_path, "pass", ALLOWED, "subprocess.run(['true'])")
    assert (done.returncode, "3 passed" in done.stdout) == (0, True), done.stdout


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
    done = run_sample(tmp_path, body, options=("--timeout", "2", "--timeout-method", "signal"))
    assert "in wait_for_ever" in done.stdout + done.stderr, done.stdout
    assert "Timeout" in done.stdout


def test_test_runs_as_often_as_repeat_says(tmp_path: Path) -> None:
    assert "5 passed" in run_sample(tmp_path, "pass", options=("--repeat", "5")).stdout
