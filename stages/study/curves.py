"""What a run came to along its way: its accuracies, problem by problem, over what it had cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.artifacts.columns import CURVES, SAMPLES, SCORES
from stages.artifacts.rows import AnyRow
from stages.artifacts.store import iterate_rows
from stages.measures.repairs import measure_errors
from stages.measures.scores import correct_by_problem

MODES = ("sampled", "greedy")
ACCURACY = "accuracy"
REPAIR = "repair "
"""Begins the measures of a repair model."""
GRID = 60
"""Costs at which a line is drawn."""
Values = npt.NDArray[np.float64]
_OWN = ("key", "study", "variant", "seed", "problems", "learning_rate", "budget")
"""Columns of `curves` that are the same in all rows of a run."""


@dataclass(frozen=True)
class Point:
    """A policy's accuracies, or a mixture of two neighbours' on the line between them."""

    round: float
    device_seconds: float
    rollouts: float
    values: Mapping[str, Values]
    """By measure: of each problem, in the order of ids, the share of draws that is correct."""


@dataclass(frozen=True)
class Run:
    """One variant with one seed and learning rate, measured on one set of problems."""

    variant: str
    seed: int
    problems: str
    """`test` or `validation`."""
    learning_rate: float | None = None
    """None where the recipe's was taken."""
    key: str = ""
    """Digest of all that the run's numbers depend on: a run that is recorded under the same key is not made again."""
    budget: float | None = None
    """Device-seconds that it is read at; None at its last point."""
    points: Sequence[Point] = ()
    repairs: Mapping[str, Values] = field(default_factory=dict)
    """Of its repair model: by measure, each held-out error's value, in the order of ids."""
    study: str | None = None
    """Its study's name among several; None where it was given none."""
    error: str | None = None

    @property
    def result(self) -> Point:
        """The point at which the run is compared with others: where its budget ends, or its last where it has none."""
        return self.points[-1] if self.budget is None else at(self.points, self.budget)


def at(points: Sequence[Point], device_seconds: float) -> Point:
    """The point of this cost, on the line between the two beside it."""
    after = next((index for index, point in enumerate(points) if point.device_seconds >= device_seconds), None)
    if after is None or after == 0:
        return points[-1 if after is None else 0]
    first, last = points[after - 1], points[after]
    share = (device_seconds - first.device_seconds) / (last.device_seconds - first.device_seconds)
    values = {name: (1 - share) * first.values[name] + share * last.values[name] for name in first.values}
    rollouts = (1 - share) * first.rollouts + share * last.rollouts
    return Point((1 - share) * first.round + share * last.round, device_seconds, rollouts, values)


def values_of(scores: Path, threshold: float) -> dict[str, Values]:
    """Accuracies of an output of `df evaluate`; NaN of a problem without a scored draw."""
    rows = list(iterate_rows(scores, SCORES))
    problems = sorted({row["problem_id"] for row in rows})
    correct = {mode: correct_by_problem(rows, mode, threshold) for mode in MODES}
    return {
        mode: np.array([np.mean(of[problem]) if problem in of else np.nan for problem in problems])
        for mode, of in correct.items()
    }


def repairs_of(repair_model: Path, threshold: float) -> dict[str, Values]:
    """Measures of the held-out repairs of a repair model's training, NaN of an error without enough scored attempts;
    none where it had no repair set.
    """
    samples = repair_model / f"{SAMPLES.name}.parquet"
    if not samples.is_file():
        return {}
    rows = list(iterate_rows(samples, SAMPLES))
    errors = sorted({row["problem_id"] for row in rows})
    measures = measure_errors(rows, threshold)
    return {name: np.array([of.get(error, np.nan) for error in errors]) for name, of in measures.items()}


def measure_of(mode: str, measured: str) -> str:
    """Name among a point's values of what was measured in its sampled or greedy answers; accuracy goes by the mode."""
    return mode if measured == ACCURACY else f"{mode} {measured}"


def line(runs: Sequence[Run], measure: str, cost: str) -> tuple[Values, Values]:
    """Costs (X,), and each run's mean measure there (S, X), on the line between the points beside it."""
    costs = [[getattr(point, cost) for point in _within(run)] for run in runs]
    grid = np.linspace(max(found[0] for found in costs), min(found[-1] for found in costs), GRID)
    means = [[np.nanmean(point.values[measure]) for point in _within(run)] for run in runs]
    return grid, np.stack([np.interp(grid, *found) for found in zip(costs, means, strict=True)])


def _within(run: Run) -> list[Point]:
    """Its points up to where its budget ends."""
    result = run.result
    return [point for point in run.points if point.device_seconds < result.device_seconds] + [result]


def rows_of(runs: Iterable[Run]) -> list[AnyRow]:
    """Rows of `curves`."""
    return [row for run in runs if run.error is None for row in _rows_of(run)]


def _rows_of(run: Run) -> list[AnyRow]:
    own = {name: getattr(run, name) for name in _OWN}
    start = {"round": 0.0, "device_seconds": 0.0, "rollouts": 0.0}
    repairs = [own | start | {"measure": REPAIR + name, "values": values} for name, values in run.repairs.items()]
    costs = ("round", "device_seconds", "rollouts")
    return repairs + [
        own | {name: getattr(point, name) for name in costs} | {"measure": name, "values": values}
        for point in run.points
        for name, values in point.values.items()
    ]


def read_runs(file: Path) -> list[Run]:
    """Those in a file of `curves`; none where there is no file."""
    rows = list(iterate_rows(file, CURVES)) if file.is_file() else []
    return [_run(list(group)) for _, group in groupby(rows, key=lambda row: [row[name] for name in _OWN])]


def _run(rows: Sequence[Mapping[str, Any]]) -> Run:
    own = {name: rows[0][name] for name in _OWN}
    values = {row["measure"]: np.array(row["values"], np.float64) for row in rows}
    repairs = {name.removeprefix(REPAIR): found for name, found in values.items() if name.startswith(REPAIR)}
    of_policies = [row for row in rows if not row["measure"].startswith(REPAIR)]
    points = [
        Point(
            number,
            measured[0]["device_seconds"],
            measured[0]["rollouts"],
            {row["measure"]: np.array(row["values"], np.float64) for row in measured},
        )
        for number, group in groupby(of_policies, key=lambda row: row["round"])
        for measured in [list(group)]
    ]
    return Run(**own, points=points, repairs=repairs)
