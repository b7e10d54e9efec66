"""``shmipc doctor``: what this machine has."""

import os
from pathlib import Path

import pytest

from shmipc.tools import doctor
from tests.tools.stuck import tool, tool_json

NAMES = {
    "shmipc",
    "python",
    "kernel",
    "C library",
    "/dev/shm size",
    "/dev/shm free",
    "/dev/shm type",
    "limit on open files",
    "pidfd_open",
    "locks of open files",
    "memfd_create",
    "futex_waitv",
    "MADV_POPULATE_WRITE",
    "RemoveIPC of logind",
    "living systems",
    "dead systems",
}


def test_doctor_says_what_the_machine_has_and_what_is_in_the_way(tmp_path: Path) -> None:
    code, report = tool_json("doctor", cwd=tmp_path)
    checks = {line["name"]: line for line in report["checks"]}
    assert set(checks) >= NAMES
    bad = {name for name, line in checks.items() if not line["ok"]}
    assert "test build" in bad  # this is one
    assert (code, report["fine"]) == (1, False)
    assert all(checks[name]["hint"] for name in bad)
    assert checks["pidfd_open"]["value"] == checks["locks of open files"]["value"] == "yes"  # or no test would run
    assert checks["kernel"]["value"] == os.uname().release
    text = tool("doctor", cwd=tmp_path)
    assert text.returncode == 1
    assert all(line["name"] in text.stdout for line in report["checks"])


def test_doctor_reports_a_limit_that_is_too_low(tmp_path: Path) -> None:
    import resource
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-P", "-m", "shmipc", "doctor"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert done.returncode == 1
    assert "LOOK limit on open files" in done.stdout


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("", "yes"),
        ("[Login]\nRemoveIPC=no\n", "no"),
        ("[Login]\n#RemoveIPC=no\n", "yes"),
        ("removeipc = Off\n", "off"),
    ],
)
def test_remove_ipc_is_read_as_logind_reads_it(content: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "systemd" / "logind.conf.d").mkdir(parents=True)
    (tmp_path / "systemd" / "logind.conf").write_text("[Login]\nRemoveIPC=yes\n")
    (tmp_path / "systemd" / "logind.conf.d" / "50-local.conf").write_text(content)
    assert doctor.remove_ipc((str(tmp_path),)) == value
