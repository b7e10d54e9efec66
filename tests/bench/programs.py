"""Runs a few lines that use the benchmarks, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import shmipc

ROOT = Path(__file__).parents[2]
PACKAGE = Path(shmipc.__file__).parents[1]


def answer_of(lines: str) -> Any:
    """What they have left in ``answer``, through JSON."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE), str(ROOT)])}
    program = f"{lines}\nimport json\nprint(json.dumps(answer))"
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
