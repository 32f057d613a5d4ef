"""Peak memory of a piece of work in a fresh process, on Linux."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

DOES_NOT_FIT = 3
"""Exit status of a fresh process whose work did not fit."""
RETURN_WHAT_IS_FREED = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
"""Environment in which a freed tensor of 64 KiB or more goes back to the system: the peak is of tensors in use."""
_LEAVE_FREE = 2 * 2**30


def fresh_process(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The last line of JSON that a Python script prints; None where its work did not fit."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode == DOES_NOT_FIT:
        return None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def limit_memory() -> None:
    """Let allocations beyond the memory that is free now fail, instead of the machine."""
    limit = max(_kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024 - _LEAVE_FREE, 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes by which the largest resident size during `work` exceeds the one before it.

    Exits with `DOES_NOT_FIT` where an allocation fails.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _peak()
    try:
        work()
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise SystemExit(DOES_NOT_FIT) from error
    return _peak() - before


def make_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Give AdamW its moments before the first step; zero gradients and no weight decay leave the weights alone."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


def _peak() -> int:
    """Largest resident size of this process; `ru_maxrss` would begin with its parent's."""
    return _kilobytes(Path("/proc/self/status"), "VmHWM") * 1024


def _kilobytes(path: Path, field: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])
