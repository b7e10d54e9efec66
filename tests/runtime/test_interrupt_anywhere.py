"""Ctrl-C at each place of the start and the end of a system: nothing is left when the program has ended."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.interrupts import SCENES

# How many of a scene's places are passed over in the gate; the scenes with workers take half a second each.
STEPS = {"system": 10, "open_system": 18, "default": 18, "spawn": 500, "pool": 500}


@pytest.mark.row("M12")
@pytest.mark.allows_rescue
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scene", SCENES)
def test_ctrl_c_at_any_place_of_start_and_end_leaves_nothing(scene: str, rounds: Callable[[int, int], int]) -> None:
    step = rounds(1 if STEPS[scene] < 100 else 25, STEPS[scene])
    first = random.randint(1, step)
    print(f"python -m tests.runtime.interrupts {scene} {first} {step}")
    driver = subprocess.run(
        [sys.executable, "-m", "tests.runtime.interrupts", scene, str(first), str(step)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=True,
    )
    found = json.loads(driver.stdout)
    assert found["faults"] == []
    assert found["places"] > 200, "so many calls does it take at least"
