"""Metrics of a training run, as rows of `metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.training.tracking import Trackers


class MetricsLog:
    """Collects (step, metric, value) and passes them on to the trackers."""

    def __init__(self, trackers: Trackers | None = None) -> None:
        self.entries: list[tuple[int, Mapping[str, float]]] = []
        self._trackers = trackers or Trackers()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [
            {"step": step, "metric": name, "value": value}
            for step, metrics in self.entries
            for name, value in metrics.items()
        ]

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        self.entries.append((step, metrics))
        self._trackers.log(step, metrics)
