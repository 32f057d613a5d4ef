"""Lines of the table, and how they are timed on a GPU; on a CPU the same code runs, so that it is tried."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import psutil
import torch

PEAK_FLOPS = {
    "H100 80GB HBM3": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 with sums in float32, by the data sheets, for cards in whose name this stands."""


@dataclass(frozen=True)
class Line:
    """One measurement; `holds` is None where nothing is demanded of it."""

    part: str
    what: str
    value: float
    unit: str
    holds: bool | None = None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        verdict = {None: "", True: "  ok", False: "  FAILS"}[self.holds]
        return f"{self.part:<20} {self.what:<74} {self.value:>12.5g} {self.unit:<10}{verdict}"


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def free_gib() -> float:
    """Memory that nothing has taken, of the GPU, or without one of the machine, in GiB."""
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    return free / 2**30


def peak_flops() -> float | None:
    """Of the card a second, where it is a known one."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return next((peak for card, peak in PEAK_FLOPS.items() if card in name), None)


def seconds_of(work: Callable[[], object], *, repeats: int = 3, warm_up: int = 1) -> float:
    """Median seconds of `work`, its kernels included."""
    taken = []
    for _ in range(warm_up + repeats):
        _synchronize()
        started = time.perf_counter()
        work()
        _synchronize()
        taken.append(time.perf_counter() - started)
    return median(taken[warm_up:])


@contextmanager
def empty_gpu() -> Iterator[None]:
    """Peak memory counts from here; what was made inside has left the GPU at the end."""
    free_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield
    free_memory()


def free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def peak_gib() -> float:
    """Largest allocation since `empty_gpu`, in GiB; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
