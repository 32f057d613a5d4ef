"""Metrics of a training run, as rows of `metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MetricsLog:
    """Collects (step, metric, value)."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows += [{"step": step, "metric": name, "value": value} for name, value in metrics.items()]
