"""Draws what a bench wrote: one SVG of horizontal bars per group, beside the JSON it comes from."""

import json
from pathlib import Path
from typing import Any

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
        _draw_group(path.with_name(f"{path.stem}-{number}.svg"), content, group)
        for number, group in enumerate(content["groups"], 1)
        if _drawable(group)
    ]


def _drawable(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The subjects that have a figure."""
    return [subject for subject in group["subjects"] if subject["median"].get(group["judged"]) is not None]


def _draw_group(target: Path, content: dict[str, Any], group: dict[str, Any]) -> Path:
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
