"""What a stage cost (eq. 29): device-seconds by phase."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Literal, TypeVar

import psutil

Phase = Literal["load", "generate", "score", "reward", "train", "save", "evaluate"]
Item = TypeVar("Item")
EVALUATION: Phase = "evaluate"
"""How good a model is, beside the work that its training needs."""

_LIST_SECONDS = 1
"""So long a list of processes is good: what one does that began since is booked once it is listed."""


def cpu_seconds() -> float:
    """Spent so far by this process and those that it started.

    Where a CPU is the device, these are its seconds: other work on the machine is not this step's (our choice).
    """
    seconds = sum(os.times()[:4])
    for process in _started(os.getpid(), int(time.monotonic() / _LIST_SECONDS)):
        with suppress(psutil.NoSuchProcess):  # it ended in between: its parent has its seconds
            seconds += sum(process.cpu_times()[:4])
    return seconds


@lru_cache(maxsize=1)
def _started(pid: int, _moment: int) -> list[psutil.Process]:
    """The processes that this one started, and theirs; to list them takes milliseconds."""
    started: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return started


class CostLedger:
    """Seconds times devices, by phase, from when the step was opened; imports come before.

    Seconds are of the wall, which a GPU spends whether it works or waits, or of another `clock`.
    """

    def __init__(self, devices: int = 1, clock: Callable[[], float] = time.perf_counter) -> None:
        self.devices = devices
        self.device_seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._opened = clock()
        self._in_phases = 0.0
        self._under_way: tuple[Phase, float] | None = None

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Time a block; the device's queue must be drained by the block itself, as reading a result does.

        What runs inside another phase is that one's: what an evaluation generates is evaluation.
        """
        if self._under_way is not None:
            yield
            return
        started = self._clock()
        self._under_way = name, started
        try:
            yield
        finally:
            self._under_way = None
            elapsed = self._clock() - started
            self._in_phases += elapsed
            self.device_seconds[name] += elapsed * self.devices

    def each(self, name: Phase, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each made in a `phase`."""
        iterator, end = iter(items), object()
        while True:
            with self.phase(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def close(self) -> None:
        """Book what no phase has (reading, alignment, prompts, writing) as `other`."""
        self.device_seconds.update(self.so_far())
        self._opened, self._in_phases = self._clock(), 0.0

    def so_far(self) -> dict[str, float]:
        """Device-seconds by phase up to now, those of the phase under way and of `other` included.

        A step that is stopped here and goes on with these has counted every second once.
        """
        found, now, in_phases = defaultdict(float, self.device_seconds), self._clock(), self._in_phases
        if self._under_way is not None:
            name, started = self._under_way
            found[name] += (now - started) * self.devices
            in_phases += now - started
        found["other"] += max(now - self._opened - in_phases, 0.0) * self.devices
        return dict(found)

    @property
    def spent(self) -> float:
        """Device-seconds so far, booked or not."""
        return sum(self.so_far().values())


def training_cost(manifest: Mapping[str, Any]) -> float:
    """Device-seconds of a step but for its evaluation, which no budget is matched against."""
    return sum(seconds for phase, seconds in manifest["device_seconds"].items() if phase != EVALUATION)
