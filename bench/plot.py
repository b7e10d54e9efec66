"""Draws what a bench wrote: one SVG per group, beside the JSON it comes from.

Horizontal bars, or, where a group has a figure for each of several sizes, a line of each subject over the sizes.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

DASHES = ("-", "--")
MARKS = "osD^v<>PX*"
COLOURS = {"ours": "#0b6e4f", "peer": "#8d99ae", "limit": "#d1495b", "beside": "#c9c9c9"}


def draw(path: Path) -> list[Path]:
    """SVGs for one JSON file, named after it; none without matplotlib, which only plots need."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return []
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "shmipc"  # the same figures draw the same file
    content = json.loads(path.read_text())
    return [
        (_draw_lines if group.get("points") else _draw_bars)(
            path.with_name(f"{path.stem}-{number}.svg"), content, group
        )
        for number, group in enumerate(content["groups"], 1)
        if _drawable(group)
    ]


def _drawable(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The subjects that have a figure, of one size at least."""
    keys = [key for key, _ in group.get("points", ())] or [group["judged"]]
    return [subject for subject in group["subjects"] if any(subject["median"].get(key) is not None for key in keys)]


def _draw_bars(target: Path, content: dict[str, Any], group: dict[str, Any]) -> Path:
    from matplotlib import pyplot

    key, factor = group["judged"], group["factor"]
    subjects = _drawable(group)
    values = [subject["median"][key] * factor for subject in subjects]
    edges = [
        [abs(subject["spread"][key][side] * factor - value) for subject, value in zip(subjects, values, strict=True)]
        for side in (0, 1)
    ]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.3 * len(subjects)), layout="constrained")
    bars = axes.barh(
        [subject["name"] for subject in subjects],
        values,
        xerr=edges,
        color=[COLOURS[subject["role"]] for subject in subjects],
        error_kw={"elinewidth": 0.8},
    )
    axes.bar_label(bars, [f" {value:.3g}" for value in values], padding=2, fontsize=8)
    axes.invert_yaxis()
    if max(values) > 20 * min(values):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel(f"{group['unit']}, median and spread of the runs; {content['machine']['cpu']}", fontsize=8)
    axes.set_title(group["title"], fontsize=9)
    axes.tick_params(labelsize=8)
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)
    return target


def _draw_lines(target: Path, content: dict[str, Any], group: dict[str, Any]) -> Path:
    """Both axes logarithmic, but from nought to one linear where a figure is nought."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    lowest = []
    seen: Counter[str] = Counter()
    for subject in _drawable(group):
        medians, role = subject["median"], subject["role"]
        line = [(size, medians[key] * group["factor"]) for key, size in group["points"] if medians.get(key) is not None]
        lowest.append(min(value for _, value in line))
        style: dict[str, Any] = {"color": COLOURS[role], "linewidth": 2.0, "linestyle": DASHES[seen[role] % 2]}
        if role == "peer":
            colour, mark = f"C{seen[role] % 10}", MARKS[seen[role] % len(MARKS)]
            style = {"color": colour, "linewidth": 1.0, "marker": mark, "markersize": 4}
        seen[role] += 1
        axes.plot(*zip(*line, strict=True), label=subject["name"], **style)
    axes.set_xscale("log", base=2)
    if min(lowest) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=1.0)
        axes.set_ylim(bottom=0.0)
    axes.set_xlabel(f"bytes; {content['machine']['cpu']}", fontsize=8)
    axes.set_ylabel(f"{group['unit']}, median of the runs", fontsize=8)
    axes.set_title(group["title"], fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)
    return target
