"""The bar of pool.map and of the demo: on a terminal, and nowhere else."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import Terminal, environment, names

MAP = """
import shmipc

def double(number):
    return 2 * number

with shmipc.System() as system:
    with system.pool(2) as pool:
        {line}
"""
LINES = {
    "of known length": "print(sum(pool.map(double, range(40), progress=True)))",
    "in chunks": "print(sum(pool.map(double, range(40), chunksize=7, progress=True)))",
    "of unknown length": "print(sum(pool.map(double, iter(range(40)), progress=True)))",
}
BAR = re.compile(r"\r\[(#*)(\.*)\] (\d+)/(\d+) (\d+\.\d)s\x1b\[K")


def check_bar(text: str, total: int) -> None:
    """It begins empty, only grows, ends full and on a line of its own."""
    found = BAR.findall(text)
    assert len(found) >= 2, repr(text)
    done = [int(count) for _, _, count, _, _ in found]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, total)
    assert {int(whole) for _, _, _, whole, _ in found} == {total}
    widths = {len(full) + len(empty) for full, empty, *_ in found}
    assert len(widths) == 1
    assert (found[0][0], found[-1][1]) == ("", ""), "empty, then full"
    assert max(len(line) for line in re.split(r"[\r\n]", text.replace("\x1b[K", ""))) <= 80


@pytest.mark.row("N9")
@pytest.mark.parametrize("how", LINES)
def test_map_with_progress_shows_a_bar_on_a_terminal(tmp_path: Path, how: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(MAP.format(line=LINES[how]))
    with Terminal(sys.executable, str(program)) as terminal:
        assert terminal.wait() == 0
        text = terminal.text
    if how == "of unknown length":
        counts = [int(count) for count in re.findall(r"\r(\d+) \d+\.\ds\x1b\[K", text)]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (0, 40)
        assert "[" not in text.replace("\x1b[K", "")
    else:
        check_bar(text, 40)
    assert text.endswith("\x1b[K\r\n1560\r\n"), "the line ends before what comes next"
    assert names() == set()


@pytest.mark.row("N9")
@pytest.mark.parametrize("how", LINES)
def test_map_with_progress_shows_nothing_in_a_pipe(tmp_path: Path, how: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(MAP.format(line=LINES[how]))
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False, env=environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1560\n", "")


@pytest.mark.row("N9")
def test_map_without_progress_shows_nothing_on_a_terminal(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(MAP.format(line="print(sum(pool.map(double, range(40))))"))
    with Terminal(sys.executable, str(program)) as terminal:
        assert terminal.wait() == 0
        assert terminal.text == "1560\r\n"


@pytest.mark.row("N9")
def test_map_that_fails_ends_the_line_of_its_bar(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    line = "print(sum(pool.map(double, [1, 2, None, 4], progress=True)))"
    program.write_text(MAP.format(line=line))
    with Terminal(sys.executable, str(program)) as terminal:
        assert terminal.wait() == 1
        text = terminal.text
    assert re.search(r"\x1b\[K\r\n(shmipc|Traceback)", text), repr(text)
    assert "TypeError" in text


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Enough text for several slices."""
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"the quick brown fox {number}\n" * 60_000)
    return folder


@pytest.mark.row("N9")
def test_demo_shows_a_bar_on_a_terminal(words: Path) -> None:
    with Terminal(sys.executable, "-m", "shmipc", "demo", str(words), "--workers", "2", cwd=words) as terminal:
        code = terminal.wait()
        text = terminal.text
    assert code == 0, text
    assert re.search(r"\r[^\r\n]*\[#*\.*\] \d+/\d+ \d+\.\ds\x1b\[K", text), repr(text)
    finished = re.findall(r"\[(#*)(\.*)\] (\d+)/(\d+)", text)[-1]
    assert finished[1] == ""
    assert finished[2] == finished[3]
    assert names() == set()


@pytest.mark.row("N9")
def test_demo_shows_no_bar_in_a_pipe(words: Path) -> None:
    command = [sys.executable, "-m", "shmipc", "demo", str(words), "--workers", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=environment(), cwd=words
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout
    assert "[#" not in done.stdout
    assert len(done.stdout) > 0
