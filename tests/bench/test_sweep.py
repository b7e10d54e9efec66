"""The sweep over sizes takes every step for ours, the limit and the peers of the standard library."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.programs import answer_of

SIZES = {"1 KiB": 1 << 10, "4 MiB": 4 << 20}
NAMES = ["shmipc", "shmipc by handle", "mp.Pipe", "shared_memory by handle", "memcpy", "absent"]
SWEEP = """
import contextlib, io
from pathlib import Path
from bench import bench_sweep, handover, harness, rows

settings = harness.Settings(quick=True)
sizes, left_out = handover.sizes_that_fit(settings)

def measure(size):
    subjects = [subject for subject in bench_sweep.subjects_over([size], 1) if subject.name in NAMES]
    subjects.append(harness.Subject("absent", "peer", lambda settings: harness.need("no_such_package")))
    return harness.measure_all("sweep", subjects, settings)

small, large = map(measure, sizes)
results = [bench_sweep.joined(*both) for both in zip(small, large, strict=True)]
groups = bench_sweep.groups_of(results, sizes, ["1 GiB"])
bench = rows.Bench("bench_sweep", "about", [], groups)
rows.write_bench(bench, Path(FOLDER), "", settings, {"cpu": "any"})
with contextlib.redirect_stdout(io.StringIO()) as printed:
    rows.print_bench(bench)
answer = printed.getvalue()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def table(folder: Path) -> str:
    table: str = answer_of(f"NAMES, FOLDER = {NAMES!r}, {str(folder)!r}\n{SWEEP}")
    return table


def test_every_subject_has_time_cpu_and_faults_at_every_size(table: str, folder: Path) -> None:
    groups: list[dict[str, Any]] = json.loads((folder / "bench_sweep.json").read_text())["groups"]
    assert len(groups) == 6
    for group in groups:
        assert [size for _, size in group["points"]] == list(SIZES.values())
        assert [subject["name"] for subject in group["subjects"]] == NAMES
        for subject in group["subjects"][:-1]:
            assert (subject["error"], subject["missing"], len(subject["runs"])) == ("", "", 1)
            assert all(subject["median"][key] >= 0 for key, _ in group["points"])


def test_table_says_what_is_absent_and_what_has_no_room(table: str) -> None:
    assert table.count("not installed: no_such_package") == 6
    assert table.count("no room for 1 GiB") == 6


def test_plot_of_a_sweep_is_a_line_of_each_subject(table: str, folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install shmipc[bench]")
    drawn = answer_of(
        "from bench.plot import draw; from pathlib import Path\n"
        f"answer = [str(path) for path in draw(Path({str(folder / 'bench_sweep.json')!r}))]"
    )
    assert len(drawn) == 6
    assert all("</svg>" in Path(path).read_text() for path in drawn)
