"""Strips of real handwriting: the 8x8 scans that ship inside scikit-learn, in disjoint pools."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CELL = 28
"""Side of one digit in pixels: one visual token of a model with patches of 14 merged two by two."""
POOLS = {"base": 0.45, "train": 0.20, "repair": 0.12, "heldout": 0.06, "test": 0.17}
"""Share of every digit's scans that each pool gets; no scan is in two pools. `heldout` writes the repair set's last
tenth, which is never trained on."""


@dataclass(frozen=True)
class Strip:
    """Black on white."""

    image: Image.Image
    digits: list[int]
    scans: list[int]
    """Index in scikit-learn of each digit's scan."""


@dataclass(frozen=True)
class Handwriting:
    """One pool: its scans by digit, each (8, 8) with ink from 0 to 16, and their indices in scikit-learn."""

    scans: dict[int, np.ndarray]
    indices: dict[int, np.ndarray]
    resampling: Image.Resampling
    """How a scan becomes a cell."""

    def strip(self, digits: list[int], rng: np.random.Generator) -> Strip:
        """Draw a scan for each digit."""
        picks = [int(rng.integers(len(self.scans[digit]))) for digit in digits]
        cells = [self.cell(self.scans[digit][pick]) for digit, pick in zip(digits, picks, strict=True)]
        used = [int(self.indices[digit][pick]) for digit, pick in zip(digits, picks, strict=True)]
        return Strip(Image.fromarray(np.hstack(cells)), digits, used)

    def cell(self, scan: np.ndarray) -> np.ndarray:
        """A scan (8, 8) as pixels (28, 28) from 0 to 255."""
        ink = Image.fromarray((255 - scan * 255 / 16).astype(np.uint8))
        return np.asarray(ink.resize((CELL, CELL), self.resampling))


def load_pools(seed: int, resampling: Image.Resampling = Image.Resampling.BILINEAR) -> dict[str, Handwriting]:
    """Split every digit's scans over the pools."""
    data = load_digits()
    rng = np.random.default_rng(seed)
    pools: dict[str, Handwriting] = {name: Handwriting({}, {}, resampling) for name in POOLS}
    for digit in range(10):
        indices = rng.permutation(np.flatnonzero(data.target == digit))
        cuts = (np.cumsum(list(POOLS.values()))[:-1] * len(indices)).round().astype(int)
        for name, part in zip(POOLS, np.split(indices, cuts), strict=True):
            pools[name].scans[digit] = data.images[part]
            pools[name].indices[digit] = part
    return pools
