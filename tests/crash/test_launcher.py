"""At every line of the launcher a process is killed or stopped: zygote, child, spare child, creator; others go on."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]  # where the driver is; behind the test build
# How many lines are passed over in the gate: each takes a tenth of a second to a second.
STEPS = {"workers": 90, "attached": 60, "rooted": 60, "deserted": 12}
STOPS = 200


def drive(scene: str, step: int, number: int) -> dict[str, Any]:
    first = random.randrange(step)
    print(f"python -m tests.crash.launches {scene} {first} {step} {number}")
    driver = subprocess.run(
        [sys.executable, "-P", "-m", "tests.crash.launches", scene, str(first), str(step), str(number)],
        env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(driver.stdout)
    return told


@pytest.mark.row("K18", "M1", "M7")
@pytest.mark.allows_rescue
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scene", STEPS)
def test_others_go_on_when_one_is_killed_at_a_line_of_the_launcher(
    rounds: Callable[[int, int], int], scene: str
) -> None:
    told = drive(scene, rounds(1, STEPS[scene]), signal.SIGKILL)
    assert told["faults"] == []
    assert len(told["missed"]) <= 1 + told["played"] // 10, told["missed"]


@pytest.mark.row("M2", "M19")
@pytest.mark.allows_rescue
@pytest.mark.timeout(3600)
def test_starts_end_in_time_when_one_is_stopped_at_a_line_of_the_launcher(rounds: Callable[[int, int], int]) -> None:
    told = drive("workers", rounds(10, STOPS), signal.SIGSTOP)
    assert told["faults"] == []
    assert len(told["missed"]) <= 1 + told["played"] // 10, told["missed"]
