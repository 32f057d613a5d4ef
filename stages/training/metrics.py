"""Metrics of a training run, as rows of `metrics`."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from sys import intern
from typing import Any

from stages.artifacts.rows import MetricRow
from stages.training.tracking import Trackers

SHOWN = ("loss", "reward_mean", "repair_reward", "kl_ref", "kl_old", "response_length")
"""Metrics that progress shows, each role's where a metric has roles."""


class MetricRows(Sequence[MetricRow]):
    """Rows of `metrics` in 20 bytes each: a long run has millions."""

    def __init__(self) -> None:
        self._steps = array("i")
        self._names: list[str] = []
        self._values = array("d")

    def append(self, step: int, metric: str, value: float) -> None:
        self._steps.append(step)
        self._names.append(intern(metric))
        self._values.append(value)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return {"step": self._steps[index], "metric": self._names[index], "value": self._values[index]}


class MetricsLog:
    """Collects (step, metric, value) and passes them on to the trackers."""

    def __init__(self, trackers: Trackers | None = None) -> None:
        self.rows = MetricRows()
        self.ends: list[int] = []
        """Rows by the end of each `add`."""
        self._trackers = trackers or Trackers()

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.rows.append(step, name, value)
        self.ends.append(len(self.rows))
        self._trackers.log(step, metrics)

    def last_step(self) -> str:
        """Words for what the last optimizer step has of the metrics that are `SHOWN`."""
        rows = list(takewhile(lambda row: row["step"] == self.rows[-1]["step"], reversed(self.rows)))
        values = {row["metric"]: row["value"] for row in reversed(rows)}
        names = [name for metric in SHOWN for name in sorted(values) if name.partition("/")[0] == metric]
        return ", ".join(f"{name} {_rounded(values[name])}" for name in names)

    def replay(self, rows: Sequence[MetricRow], ends: Sequence[int]) -> None:
        """Add the `rows` of an earlier log, one `add` for each of its `ends`, so that trackers get them in order."""
        for first, end in pairwise([0, *ends]):
            if end > first:
                self.add(rows[first]["step"], {row["metric"]: row["value"] for row in rows[first:end]})


def _rounded(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
