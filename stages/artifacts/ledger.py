"""What a stage cost (eq. 29): device-seconds by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Phase = Literal["load", "generate", "score", "reward", "train", "save"]


class CostLedger:
    """Wall seconds times devices, by phase; `load` holds imports and checkpoints."""

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.device_seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Time a block; the device's queue must be drained by the block itself, as reading a result does."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.device_seconds[name] += (time.perf_counter() - started) * self.devices

    @property
    def total(self) -> float:
        return sum(self.device_seconds.values())
