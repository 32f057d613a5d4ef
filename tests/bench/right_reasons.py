"""How many answers of studies of `worded_digits` are right from end to end, beside those that end in the right number.

    PYTHONPATH=. python tests/bench/right_reasons.py STUDY… --out FILE [--digits 8 12]

STUDY are outputs of `make study RECIPE=worded_digits`, whose evaluations on the test problems are read again. A right
number may stand behind a wrong reading or a step that was left out. FILE gets their runs with both counts;
`df merge-studies FILE --measure "answers right from end to end"` compares them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.long_digits.build import LENGTHS
from data.strips.making import Row
from right_repairs import is_right, shown
from stages.artifacts.columns import CURVES, SCORES
from stages.artifacts.store import iterate_rows, write_rows
from stages.errors import DataError
from stages.study.curves import MODES, Point, Run, Values, measure_of, read_runs, rows_of, values_of

MEASURED = "answers right from end to end"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+", metavar="STUDY")
    parser.add_argument("--digits", type=int, nargs=2, default=LENGTHS, metavar=("FEWEST", "MOST"))
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    strips = shown("test", (arguments.digits[0], arguments.digits[1]))
    write_rows(arguments.out, CURVES, rows_of(run for study in arguments.studies for run in right_runs(study, strips)))


def right_runs(study: Path, strips: Mapping[str, Row]) -> Iterator[Run]:
    """Its runs on the test problems, whose points have the share of answers that are right from end to end too."""
    evaluations = [(values_of(folder, 1.0), folder) for folder in sorted((study / "steps").glob("evaluate-*"))]
    right: dict[Path, dict[str, Values]] = {}

    def of(point: Point) -> dict[str, Values]:
        """Of the evaluation whose accuracies on every problem are the point's."""
        folder = next((found for values, found in evaluations if _same(values, point.values)), None)
        if folder is None:
            raise DataError(
                f"{study / 'steps'}: the evaluation of round {point.round:g} of a run is not there any more"
            )
        if folder not in right:
            right[folder] = right_values(folder, strips)
        return {**point.values, **right[folder]}

    for run in read_runs(study / "curves.parquet"):
        if run.problems == "test":
            yield replace(run, points=[replace(point, values=of(point)) for point in run.points])


def right_values(scores: Path, strips: Mapping[str, Row]) -> dict[str, Values]:
    """Of each problem, in the order of ids, the share of sampled and of greedy answers right from end to end."""
    found: dict[str, dict[str, list[bool]]] = {mode: defaultdict(list) for mode in MODES}
    for row in iterate_rows(scores, SCORES):
        found[row["mode"]][row["problem_id"]].append(is_right(row["text"], strips[row["problem_id"]]))
    return {
        measure_of(mode, MEASURED): np.array([np.mean(of[problem]) for problem in sorted(of)])
        for mode, of in found.items()
    }


def _same(first: Mapping[str, Values], second: Mapping[str, Values]) -> bool:
    return all(np.array_equal(first[mode], second[mode], equal_nan=True) for mode in MODES)


if __name__ == "__main__":
    main()
