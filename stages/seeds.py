"""Independent seeds from one."""

from __future__ import annotations

import numpy as np


def derive_seed(seed: int, *path: int) -> int:
    """A 63-bit seed for one purpose of a run; `path` tells purposes, shards and iterations apart."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(2, np.uint32).view(np.uint64)[0] >> 1)
