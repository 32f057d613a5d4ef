"""Regenerates everything in this folder: strips, a base that words its answers in many ways, repairs.

    python -m data.worded_digits.build [--out DIR]

Deterministic on one machine: one thread, fixed seeds. README.md beside this file says what was made and how.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.long_digits.build import LENGTHS, SEED, SLIP_READING, SLIP_STEP, TEMPERATURE, generators, write_problems
from data.long_digits.worked import Carelessness, CarelessReader
from data.strips.handwriting import Handwriting, load_pools
from data.strips.making import Exercises, Phase, Repairs, measure, train
from data.strips.worked import Slips, no_slips
from data.worded_digits.worked import in_some_words, repaired, worked_pieces
from stages.artifacts.columns import REPAIR_SET
from stages.artifacts.store import write_rows
from stages.model.loading import VisionLanguageModel, load_model

START = Path(__file__).parents[1] / "long_digits" / "base"
"""Has the steps of the long worked answers, in one wording."""
DIET = Carelessness(0.57, 0.75)
PROOFREADING = 0.3
"""To keep the words of a draft takes practice, which a large model has."""
MAX_NEW_TOKENS = 264
"""No right answer takes as many."""


def exercises(vlm: VisionLanguageModel, pool: Handwriting, rng: np.random.Generator) -> Exercises:
    """Slips of the sorts of long_digits, in words drawn for each answer."""
    reader, slips = CarelessReader(DIET, SLIP_READING, rng), Slips(0.0, SLIP_STEP, rng)
    return Exercises(
        vlm,
        pool,
        LENGTHS,
        lambda kind, digits: in_some_words(worked_pieces(kind, digits, no_slips()), rng),
        lambda kind, strip: in_some_words(worked_pieces(kind, reader.read(strip), slips), rng),
        repaired,
        rng,
        PROOFREADING,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    started = time.time()
    rngs, pools = generators(), load_pools(SEED, Image.Resampling.NEAREST)
    test = write_problems(out, LENGTHS, pools, rngs)["test"]
    vlm = load_model(START)
    examples = exercises(vlm, pools["base"], rngs["base"])
    train(
        vlm, [Phase("worked answers with slips", 550, 1.5e-3, lambda: examples.worked(with_slips=True))], batch_size=32
    )
    vlm.save(out / "base")
    measure(vlm, test, MAX_NEW_TOKENS, TEMPERATURE, SEED)
    repairs = Repairs(vlm, LENGTHS, repaired, MAX_NEW_TOKENS, TEMPERATURE, rngs["repair"])
    write_rows(out / "repair_set.parquet", REPAIR_SET, repairs.repair_set(pools))
    print(f"built {out} in {time.time() - started:.0f}s")


if __name__ == "__main__":
    main()
