"""Of which process group a worker is, and that the end of none hangs up the program."""

import sys
from pathlib import Path

import pytest

from tests.programs import Program
from tests.terminal import Terminal, names

WITHOUT_A_SHELL = """
import subprocess
from shmipc.runtime import launcher

class Worker:
    def pid(self):
        return os.getpid()

def state(pid):
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]

def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    while state(pid) != "T":
        time.sleep(0.001)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have it ignored
stopped = subprocess.Popen(["sleep", "1000"])
try:
    with shmipc.System() as system:
        first, second = system.spawn(Worker), system.options(env={"OMP_NUM_THREADS": "1"}).spawn(Worker)
        stop(stopped.pid)
        if sys.argv[1] == "zygote":
            stop(first.pid())
            stop(second.pid())
            os.kill(launcher.launcher().zygote_pid(), signal.SIGKILL)
            time.sleep(0.2)
            for ref in first, second:
                assert state(shmipc.process(ref).pid) == "T"
                os.kill(shmipc.process(ref).pid, signal.SIGCONT)
                ref.pid()
        for ref in first, second:
            assert shmipc.process(ref).stop()
        time.sleep(0.2)
        assert state(stopped.pid) == "T"
    say("goes on")
finally:
    stopped.kill()
"""

JOB = """
import os, sys, shmipc

class Worker:
    def group(self):
        return os.getpgid(0)

with shmipc.System() as system:
    workers = system.spawn(Worker), system.options(env={"OMP_NUM_THREADS": "1"}).spawn(Worker)
    assert os.getpgid(0) != os.getpgid(os.getppid())
    print([worker.group() == os.getpgid(0) for worker in workers], flush=True)
    shmipc.receive()
"""


@pytest.mark.row("M1", "M19")
@pytest.mark.parametrize("who", ["workers", "zygote"])
def test_program_without_a_shell_is_not_hung_up_beside_a_stopped_process(tmp_path: Path, who: str) -> None:
    """Its group was an orphaned one again when the last worker had ended, and SIGHUP came to all of it."""
    with Program(tmp_path, WITHOUT_A_SHELL, who) as program:
        assert program.hear() == "goes on"
        assert program.process.wait(20) == 0


@pytest.mark.row("M12")
def test_workers_are_of_the_job_of_a_shell_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "job.py"
    path.write_text(JOB)
    with Terminal("/bin/sh", "-m", "-c", f"{sys.executable} {path}; true") as terminal:
        terminal.wait_for("[True, True]")
        terminal.press("\x03")
        assert terminal.wait() in (-2, 130)
        assert terminal.text.count("KeyboardInterrupt") == 1
    assert names() == set()
