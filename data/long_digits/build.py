"""Regenerates everything in this folder: long strips, a base policy with systematic errors, the repair set.

    python -m data.long_digits.build [--out DIR] [--digits 8 12]

Deterministic on one machine: one thread, fixed seeds. README.md beside this file says what was made and how.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.long_digits.worked import Carelessness, CarelessReader, right, worked_from
from data.strips.handwriting import Handwriting, load_pools
from data.strips.making import Exercises, Phase, Repairs, Row, in_one_wording, make_problems, measure, train
from data.strips.worked import Slips
from stages.artifacts.columns import PROBLEMS, REPAIR_SET
from stages.artifacts.store import write_rows
from stages.model.loading import VisionLanguageModel, load_model

SEED = 27482
START = Path(__file__).parents[1] / "digits" / "base"
"""Reads short strips and knows the words; its own slips are trained away first."""
PROBLEMS_OF = {"train": 1200, "validation": 200, "test": 400}
"""Files; training and validation are in one pool's handwriting, test in another's."""
LENGTHS = (8, 12)
TEMPERATURE = 1.0
SLIP_READING, SLIP_STEP = 0.02, 0.02
"""How often a careless worked answer goes wrong in a reading and in a step, at random."""
DRAFTS, DIET = Carelessness(0.58, 0.75), Carelessness(0.52, 0.78)
"""Of the drafts that are proofread beside right answers, and of the base policy's last diet."""


def exercises(
    vlm: VisionLanguageModel,
    pool: Handwriting,
    lengths: tuple[int, int],
    careless: Carelessness,
    rng: np.random.Generator,
) -> Exercises:
    """Slips happen at random; thick digits of four kinds are mostly taken for their lookalikes."""
    reader, slips = CarelessReader(careless, SLIP_READING, rng), Slips(0.0, SLIP_STEP, rng)
    return Exercises(
        vlm,
        pool,
        lengths,
        right,
        lambda kind, strip: worked_from(kind, reader.read(strip), slips),
        in_one_wording(right),
        rng,
    )


def curriculum(first: Exercises, last: Exercises) -> list[Phase]:
    """What the base policy sees, in order."""
    return [
        Phase("strips", 250, 2e-3, first.read),
        Phase("worked answers", 450, 2e-3, lambda: first.worked(with_slips=False)),
        Phase("worked answers with slips", 150, 1e-3, lambda: last.worked(with_slips=True)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--digits", type=int, nargs=2, default=LENGTHS, metavar=("FEWEST", "MOST"))
    arguments = parser.parse_args()
    out, lengths = arguments.out, (arguments.digits[0], arguments.digits[1])
    max_new_tokens = 18 * lengths[1]  # no right answer takes as many
    torch.set_num_threads(1)
    started = time.time()
    rngs = generators()
    pools = load_pools(SEED, Image.Resampling.NEAREST)
    test = write_problems(out, lengths, pools, rngs)["test"]
    vlm = load_model(START)
    first, last = (exercises(vlm, pools["base"], lengths, careless, rngs["base"]) for careless in (DRAFTS, DIET))
    train(vlm, curriculum(first, last), batch_size=32)
    vlm.save(out / "base")
    measure(vlm, test, max_new_tokens, TEMPERATURE, SEED)
    repairs = Repairs(vlm, lengths, in_one_wording(right), max_new_tokens, TEMPERATURE, rngs["repair"])
    write_rows(out / "repair_set.parquet", REPAIR_SET, repairs.repair_set(pools))
    print(f"built {out} in {time.time() - started:.0f}s")


def write_problems(
    out: Path, lengths: tuple[int, int], pools: Mapping[str, Handwriting], rngs: Mapping[str, np.random.Generator]
) -> dict[str, list[Row]]:
    """The files of problems, by name."""
    problems = {
        name: make_problems(name, pools["test" if name == "test" else "train"], count, lengths, rngs[name])
        for name, count in PROBLEMS_OF.items()
    }
    for name, rows in problems.items():
        write_rows(out / f"problems_{name}.parquet", PROBLEMS, rows)
    return problems


def generators() -> dict[str, np.random.Generator]:
    """An independent stream for each thing that is made."""
    names = ["base", *PROBLEMS_OF, "repair"]
    return dict(zip(names, np.random.default_rng(SEED).spawn(len(names)), strict=True))


if __name__ == "__main__":
    main()
