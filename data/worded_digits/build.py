"""Regenerates everything in this folder: strips, a base that words its answers in many ways, repairs.

    python -m data.worded_digits.build [--out DIR] [--digits 8 12]

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
TOKENS_A_DIGIT = 22
"""No right answer takes as many for each digit of its strip."""


def exercises(
    vlm: VisionLanguageModel, pool: Handwriting, lengths: tuple[int, int], rng: np.random.Generator
) -> Exercises:
    """Slips of the sorts of long_digits, in words drawn for each answer."""
    reader, slips = CarelessReader(DIET, SLIP_READING, rng), Slips(0.0, SLIP_STEP, rng)
    return Exercises(
        vlm,
        pool,
        lengths,
        lambda kind, digits: in_some_words(worked_pieces(kind, digits, no_slips()), rng),
        lambda kind, strip: in_some_words(worked_pieces(kind, reader.read(strip), slips), rng),
        repaired,
        rng,
        PROOFREADING,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--digits", type=int, nargs=2, default=LENGTHS, metavar=("FEWEST", "MOST"))
    arguments = parser.parse_args()
    out, lengths = arguments.out, (arguments.digits[0], arguments.digits[1])
    max_new_tokens = TOKENS_A_DIGIT * lengths[1]
    torch.set_num_threads(1)
    started = time.time()
    rngs, pools = generators(), load_pools(SEED, Image.Resampling.NEAREST)
    test = write_problems(out, lengths, pools, rngs)["test"]
    vlm = load_model(START)
    examples = exercises(vlm, pools["base"], lengths, rngs["base"])
    train(
        vlm, [Phase("worked answers with slips", 550, 1.5e-3, lambda: examples.worked(with_slips=True))], batch_size=32
    )
    vlm.save(out / "base")
    measure(vlm, test, max_new_tokens, TEMPERATURE, SEED)
    repairs = Repairs(vlm, lengths, repaired, max_new_tokens, TEMPERATURE, rngs["repair"])
    write_rows(out / "repair_set.parquet", REPAIR_SET, repairs.repair_set(pools))
    print(f"built {out} in {time.time() - started:.0f}s")


if __name__ == "__main__":
    main()
