"""The benchmark's picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LABELS = {
    "trl": "TRL",
    "trl_compact": "TRL, head as on a GPU",
    "trl_checkpointing": "TRL, head as on a GPU, checkpointing",
    "full_logits": "full logits, padded rows",
    "unpadded_row": "one unpadded row",
    "prefix_grouping": "prefix grouping",
    "ours": "Difference Feedback, gates off",
    "ours_independent": "Difference Feedback, gates off, independent rollouts",
    "ours_checkpointing": "Difference Feedback, gates off, checkpointing",
    "ours_gated": "Difference Feedback, gates on",
    "ours_gated_checkpointing": "Difference Feedback, gates on, checkpointing",
}
OWN, OTHERS = "#2a6f4e", "#9aa3ad"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Time and peak memory of every side."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2, sharey=True)
    _bars(time_axes, report["median_seconds"], "one optimizer step, seconds of CPU", "%.1f")
    if peaks := {name: value / 2**20 for name, value in report["peak_bytes"].items()}:
        _bars(memory_axes, peaks, "peak memory, MiB", "%.0f")
    time_axes.invert_yaxis()  # and with it the other's
    figure.suptitle(f"{report['shape']} prompt of {report['prompt_tokens']} tokens, group of {report['group']}")
    figure.savefig(path, dpi=150)


def _bars(axes: Axes, values: Mapping[str, float], title: str, number: str) -> None:
    colours = [OWN if name.startswith("ours") else OTHERS for name in values]
    bars = axes.barh([LABELS[name] for name in values], list(values.values()), color=colours)
    axes.bar_label(bars, fmt=number, padding=3)
    axes.set_xlim(0, max(values.values()) * 1.15)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
