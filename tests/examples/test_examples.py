"""Every example runs as a program of its own, ends well and says something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import shmipc

EXAMPLES = Path(__file__).parents[2] / "examples"
FOUND = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("facades/*.py")]
REAL = {
    "image_pipeline.py": ("--frames", "8"),
    "data_loader.py": ("--epochs", "1"),
    "vector_env.py": ("--steps", "50"),
}
PROGRAMS = sorted(str(path.relative_to(EXAMPLES)) for path in FOUND)
PACKAGE = Path(shmipc.__file__).parents[1]
SECONDS = 60.0


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(program: subprocess.Popen[str]) -> str:
    """Its output, when it ended well and silently otherwise."""
    try:
        output, errors = program.communicate(timeout=SECONDS)
    finally:
        program.kill()
    assert (program.returncode, errors) == (0, "")
    return output


def test_there_are_examples() -> None:
    assert {"ping_pong.py", "ask_and_reply.py", "worker_pool.py", "big_arrays.py"} <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_example_runs(name: str) -> None:
    assert finish(start(EXAMPLES / name)) != ""


@pytest.mark.parametrize("name", REAL)
def test_example_on_real_data_runs_and_is_compared(name: str) -> None:
    for module in ("sklearn", "PIL", "gymnasium"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install shmipc[examples]")
    assert "x\n" in finish(start(EXAMPLES / "real" / name, *REAL[name]))


@pytest.mark.parametrize("first", ["listen.py", "speak.py"])
def test_two_programs_meet_whichever_starts_first(first: str) -> None:
    folder, name = EXAMPLES / "two_programs", f"board-{os.getpid()}"
    order = [first, *({"listen.py", "speak.py"} - {first})]
    programs = {program: start(folder / program, name) for program in order}
    assert "heard: good morning" in finish(programs["listen.py"])
    assert finish(programs["speak.py"]) == "said everything\n"
