"""Regenerates everything in this folder: handwriting problems, the base policy, the repair set.

    python -m data.digits.build [--out DIR]

Deterministic on one machine: one thread, fixed seeds. README.md beside this file says what was made and how.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.strips.handwriting import Handwriting, load_pools
from data.strips.making import (
    Exercises,
    Phase,
    Repairs,
    answers_of,
    in_one_wording,
    make_problems,
    report,
    tokenizer_texts,
    train,
)
from data.strips.tiny_model import tiny_qwen2_5_vl, train_tokenizer
from data.strips.worked import Slips, no_slips, worked_answer
from stages.artifacts.columns import PROBLEMS, REPAIR_SET
from stages.artifacts.store import write_rows
from stages.engines.protocol import Sampling
from stages.model.loading import VisionLanguageModel

SEED = 27482
LENGTHS = (3, 4)
TRAIN_PROBLEMS, TEST_PROBLEMS = 2400, 600
TEMPERATURE, MAX_NEW_TOKENS = 0.7, 80
SLIP_READING, SLIP_STEP = 0.22, 0.19
"""How often the base policy's second diet goes wrong in a reading and in a step."""


def right(kind: str, digits: Sequence[int]) -> str:
    """The worked answer without a slip."""
    return worked_answer(kind, digits, no_slips())


def exercises(vlm: VisionLanguageModel, pool: Handwriting, rng: np.random.Generator) -> Exercises:
    """Slips happen anywhere, at random."""
    slips = Slips(SLIP_READING, SLIP_STEP, rng)
    return Exercises(
        vlm,
        pool,
        LENGTHS,
        right,
        lambda kind, strip: worked_answer(kind, strip.digits, slips),
        in_one_wording(right),
        rng,
    )


def curriculum(exercises: Exercises) -> list[Phase]:
    """What the base policy sees, in order."""
    return [
        Phase("single digits", 150, 2e-3, lambda: exercises.read((1, 1))),
        Phase("strips", 300, 2e-3, exercises.read),
        Phase("worked answers", 900, 2e-3, lambda: exercises.worked(with_slips=False)),
        Phase("worked answers with slips", 250, 1e-3, lambda: exercises.worked(with_slips=True)),
    ]


def generators() -> dict[str, np.random.Generator]:
    """An independent stream for each thing that is made."""
    names = ["words", "base", "train", "repair", "test"]
    return dict(zip(names, np.random.default_rng(SEED).spawn(len(names)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    started = time.time()
    rngs, pools = generators(), load_pools(SEED)
    problems = make_problems("train", pools["train"], TRAIN_PROBLEMS, LENGTHS, rngs["train"])
    test = make_problems("test", pools["test"], TEST_PROBLEMS, LENGTHS, rngs["test"])
    for name, rows in (("train", problems), ("test", test)):
        write_rows(out / f"problems_{name}.parquet", PROBLEMS, rows)
    vlm = tiny_qwen2_5_vl(train_tokenizer(tokenizer_texts(rngs["words"], right)), seed=SEED)
    train(vlm, curriculum(exercises(vlm, pools["base"], rngs["base"])), batch_size=64)
    vlm.save(out / "base")
    report(test, answers_of(vlm, test, 8, Sampling(MAX_NEW_TOKENS, TEMPERATURE, SEED)), "base on test")
    repairs = Repairs(vlm, LENGTHS, in_one_wording(right), MAX_NEW_TOKENS, TEMPERATURE, rngs["repair"])
    write_rows(out / "repair_set.parquet", REPAIR_SET, repairs.repair_set(pools))
    print(f"built {out} in {time.time() - started:.0f}s")


if __name__ == "__main__":
    main()
