"""Runs of several studies, put together and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.artifacts.columns import CURVES
from stages.artifacts.rows import AnyRow
from stages.artifacts.store import parquet_files
from stages.errors import DataError
from stages.study.curves import ACCURACY, MODES, Point, Run, measure_of, read_runs
from stages.study.results import BASE, result_rows


def merge(sources: Sequence[tuple[str | None, Path]]) -> list[Run]:
    """The runs of outputs of `df ablate` or files of `curves`, each once, with all that was measured of it.

    A source's name becomes that of its study; without one, its runs keep the names that they have.

    Raises:
        DataError: a source has no runs, or there are two of one study, variant, seed, learning rate and budget on
            problems of that kind that came to different values.
    """
    found: dict[tuple[object, ...], Run] = {}
    for name, source in sources:
        for run in (run for file in parquet_files(source, CURVES) for run in read_runs(file)):
            named = run if name is None else replace(run, study=name)
            own = (named.study, run.variant, run.seed, run.problems, run.learning_rate, run.budget)
            known = found.setdefault(own, named)
            if not _is_same(known, named):
                raise DataError(
                    f"{source}: {_told(named)} on {run.problems} problems is there twice, with other values; "
                    "tell the studies apart, each by a name: NAME=STUDY"
                )
            found[own] = max(known, named, key=lambda run: len(run.points[0].values))
    return [*found.values()]


def select(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """Those of these variants, each `VARIANT` or `STUDY/VARIANT`, in this order, after the base policies of their
    studies, each once; all if there are no names.

    Raises:
        DataError: there is no such variant.
    """
    if not names:
        return [*runs]
    chosen: list[Run] = []
    for name in names:
        of_name = [run for run in runs if name in (run.variant, _full_name(run))]
        if not of_name:
            known = ", ".join(dict.fromkeys(_full_name(run) for run in runs))
            raise DataError(f"no run of {name}; there are {known}")
        chosen += of_name
    studies = {run.study for run in chosen}
    bases = [run for run in runs if run.variant == BASE and run.study in studies]
    return [*{id(run): run for run in bases + chosen}.values()]


def compared(
    runs: Sequence[Run], baseline: str, read_at: Sequence[float], measured: str = ACCURACY
) -> tuple[list[Run], list[AnyRow]]:
    """The runs on test problems that may be compared, the base policy of a seed once, and their rows of `ablation`.

    Raises:
        DataError: a variant or the base policy has two results of one seed, runs are read at different
            device-seconds or on different numbers of problems, nothing of that name was measured, or the baseline has
            no run.
    """
    found: dict[tuple[str, int], Run] = {}
    for run in runs:
        if run.problems == "test":
            other = found.setdefault((run.variant, run.seed), run)
            if not _is_same(other, run):
                told = f"{_told(other)}, and {_told(run)}, came to other values"
                if run.variant == BASE:
                    raise DataError(f"{told}: their problems, base policy or evaluation differ, so do not compare them")
                raise DataError(f"{told}; choose one study's with --variant STUDY/VARIANT")
    tested = [*found.values()]
    trained = [run for run in tested if run.variant != BASE]
    if all(run.variant != baseline for run in trained):
        raise DataError(f"no run of the baseline {baseline} on test problems")
    _check_alike("read at the same device-seconds", {run.budget: run for run in trained})
    _check_alike("measured on the same problems", {len(run.points[0].values[MODES[0]]): run for run in tested})
    for run in tested:
        if measure_of(MODES[0], measured) not in run.points[0].values:
            raise DataError(f"{_told(run)}: nothing that is called {measured!r} was measured")
    return tested, result_rows(tested, baseline, read_at, measured)


def _check_alike(what: str, runs: Mapping[float | None, Run]) -> None:
    if len(runs) > 1:
        told = ", ".join(f"{_told(run)}: {value}" for value, run in runs.items())
        raise DataError(f"runs that are compared have to be {what}; {told}")


def _is_same(first: Run, second: Run) -> bool:
    return len(first.points) == len(second.points) and all(map(_is_same_point, first.points, second.points))


def _is_same_point(first: Point, second: Point) -> bool:
    return first.device_seconds == second.device_seconds and all(
        np.array_equal(first.values[mode], second.values[mode], equal_nan=True) for mode in MODES
    )


def _told(run: Run) -> str:
    return f"{_full_name(run)}, seed {run.seed}"


def _full_name(run: Run) -> str:
    return run.variant if run.study is None else f"{run.study}/{run.variant}"
