"""Metrics of a training run, as rows of `metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.training.tracking import Trackers


class MetricsLog:
    """Collects (step, metric, value) and passes them on to the trackers."""

    def __init__(self, trackers: Trackers | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._trackers = trackers or Trackers()

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows += [{"step": step, "metric": name, "value": value} for name, value in metrics.items()]
        self._trackers.log(step, metrics)
