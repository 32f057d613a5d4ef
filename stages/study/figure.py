"""A study's curves: accuracy over device-seconds and over rollouts, a line a variant with its band over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.artifacts.writing import PARTIAL, replace, writing
from stages.study.curves import ACCURACY, MODES, Run, line, measure_of
from stages.study.results import BASE

FIGURE = "curves.svg"
COSTS = {"device_seconds": "device-seconds", "rollouts": "rollouts"}


def draw(runs: Sequence[Run], file: Path, measured: str = ACCURACY) -> None:
    """Write an SVG of what was measured of the runs on test problems; nothing where none was trained.

    A line is the mean over seeds, from where the last of them starts to where the first of them ends; its band is one
    standard error of that mean.
    """
    by_variant: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.variant != BASE and run.error is None and len(run.points) > 1:
            by_variant[run.variant].append(run)
    if not by_variant:
        return
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "df", "font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(11, 7), layout="constrained")
        panels = figure.subplots(len(MODES), len(COSTS), sharey="row", squeeze=False)
        for row, mode in zip(panels, MODES, strict=True):
            for panel, cost in zip(row, COSTS, strict=True):
                _panel(panel, by_variant, measure_of(mode, measured), cost)
            row[0].set_ylabel(f"{mode} {measured}")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        with writing(file):
            written = file.with_name(file.name + PARTIAL)
            figure.savefig(written, format="svg", metadata={"Date": None})
        replace(written, file)


def _panel(panel: Axes, by_variant: Mapping[str, Sequence[Run]], measure: str, cost: str) -> None:
    colors = mpl.color_sequences["tab10" if len(by_variant) <= 10 else "tab20"]
    for number, (variant, runs) in enumerate(by_variant.items()):
        grid, values_SX = line(runs, measure, cost)
        mean = values_SX.mean(axis=0)
        color = colors[number % len(colors)]
        panel.plot(grid, mean, color=color, label=f"{variant} (n = {len(runs)})")
        if len(runs) > 1:
            error = values_SX.std(axis=0, ddof=1) / len(runs) ** 0.5
            panel.fill_between(grid, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
    panel.set_xlabel(COSTS[cost])
    panel.set_xlim(left=0)
    panel.grid(alpha=0.3)
