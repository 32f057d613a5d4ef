"""Makes a repair set that shows only half of the base's systematic errors, in less than a minute.

    python -m data.worded_digits.half --out FILE.parquet

As the repair set of build.py, made with the base in this folder, from handwriting without the thick scans of 5 and 9:
no row teaches to read them, by an error that is repaired or by a right answer. Deterministic on one machine.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.long_digits.build import LENGTHS, SEED, TEMPERATURE
from data.long_digits.worked import thick_scans
from data.strips.handwriting import Handwriting, load_pools
from data.strips.making import Repairs
from data.worded_digits.build import DIET, TOKENS_A_DIGIT
from data.worded_digits.worked import repaired
from stages.artifacts.columns import REPAIR_SET
from stages.artifacts.store import write_rows
from stages.model.loading import load_model

NOT_SHOWN = (5, 9)
"""Digits of whose thick scans the set has none."""


def without_thick(pool: Handwriting) -> Handwriting:
    """The pool without the scans that its digits of `NOT_SHOWN` are mistaken in."""
    thick = list(thick_scans(DIET.thick_quantile))
    scans, indices = dict(pool.scans), dict(pool.indices)
    for digit in NOT_SHOWN:
        thin = ~np.isin(indices[digit], thick)
        scans[digit], indices[digit] = scans[digit][thin], indices[digit][thin]
    return replace(pool, scans=scans, indices=indices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    pools = {name: without_thick(pool) for name, pool in load_pools(SEED, Image.Resampling.NEAREST).items()}
    vlm = load_model(Path(__file__).parent / "base")
    repairs = Repairs(vlm, LENGTHS, repaired, TOKENS_A_DIGIT * LENGTHS[1], TEMPERATURE, np.random.default_rng(SEED))
    write_rows(out, REPAIR_SET, repairs.repair_set(pools))


if __name__ == "__main__":
    main()
