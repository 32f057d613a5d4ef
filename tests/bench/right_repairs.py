"""How many repairs of `worded_digits` are right from end to end, and how many correct rollouts.

    PYTHONPATH=. python tests/bench/right_repairs.py --rollouts DIR --masks DIR

DIR are the outputs of `df rollout` on the example's training problems and of `df build-masks`. A right final answer may
stand behind a wrong reading: a 1 taken for a 7 leaves a count of even digits as it is. What a strip shows is drawn
again as build.py draws it.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from PIL import Image

from data.long_digits.build import LENGTHS, PROBLEMS_OF, SEED, generators
from data.strips.handwriting import load_pools
from data.strips.making import Row, make_problems
from data.worded_digits.worked import repaired
from stages.artifacts.columns import REPAIRS, ROLLOUTS
from stages.artifacts.store import iterate_rows

_READING = re.compile(r"The digits are (\d(?:(?:, |; |: | - )\d)*)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    arguments = parser.parse_args()
    strips = shown("train")
    correct = [row for row in iterate_rows(arguments.rollouts, ROLLOUTS) if row["reward"] == 1.0]
    repairs = list(iterate_rows(arguments.masks, REPAIRS))
    chosen = [row for row in repairs if row["selection"] == "chosen"]
    errors = {(row["problem_id"], row["sample"]) for row in repairs}
    print(f"errors: {len(errors)}, repaired: {len(chosen)}")
    for name, answers in (("correct rollouts", correct), ("repairs", chosen)):
        read = sum(is_read_right(row["text"], strips[row["problem_id"]]) for row in answers)
        print(f"{name}: {len(answers)}, read right: {read}{_share(read, len(answers))}")
    right = sum(is_right(row["text"], strips[row["problem_id"]]) for row in chosen)
    print(f"repairs that are right: {right}{_share(right, len(chosen))}")
    for agreed, verdicts in sorted(agreeing(repairs, strips).items()):
        print(f"candidates that say the same as the most: {agreed}, right: {verdicts[True]} of {verdicts.total()}")


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.2f})" if whole else ""


def shown(split: str, lengths: tuple[int, int] = LENGTHS) -> dict[str, Row]:
    """The strips of a split's problems, by id; `lengths` are what build.py was given for `--digits`."""
    pool = load_pools(SEED, Image.Resampling.NEAREST)[split]
    rows = make_problems(split, pool, PROBLEMS_OF[split], lengths, generators()[split])
    return {row["problem_id"]: row for row in rows}


def is_read_right(text: str, problem: Row) -> bool:
    """Whether a worked answer names every digit of the strip."""
    reading = _READING.match(text)
    return reading is not None and [int(digit) for digit in re.findall(r"\d", reading[1])] == problem["digits"]


def is_right(text: str, problem: Row) -> bool:
    """Whether it is the right worked answer, in any wording."""
    return repaired(problem["kind"], problem["digits"], text) == text


def agreeing(repairs: list[Row], strips: dict[str, Row]) -> dict[int, Counter[bool]]:
    """By how many of an error's candidates with the right answer say what most of them say: whether that is right."""
    texts: dict[tuple[str, int], Counter[str]] = {}
    for row in repairs:
        if row["reward"] == 1.0:
            texts.setdefault((row["problem_id"], row["sample"]), Counter())[row["text"]] += 1
    found: dict[int, Counter[bool]] = {}
    for (problem_id, _), said in texts.items():
        text, count = said.most_common(1)[0]
        found.setdefault(count, Counter())[is_right(text, strips[problem_id])] += 1
    return found


if __name__ == "__main__":
    main()
