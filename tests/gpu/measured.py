"""Lines of the table, and how they are timed on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch


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
        return f"{self.part:<12} {self.what:<74} {self.value:>12.5g} {self.unit:<10}{verdict}"


def seconds_of(work: Callable[[], object], *, repeats: int = 3, warm_up: int = 1) -> float:
    """Median seconds of `work`, its kernels included."""
    taken = []
    for _ in range(warm_up + repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return median(taken[warm_up:])


@contextmanager
def empty_gpu() -> Iterator[None]:
    """Peak memory counts from here; what was made inside has left the GPU at the end."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    gc.collect()
    torch.cuda.empty_cache()


def peak_gib() -> float:
    """Largest allocation since `empty_gpu`, in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30
