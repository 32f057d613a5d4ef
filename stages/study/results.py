"""What a study's runs say: each variant beside the base policy and beside the baseline variant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product

from stages.artifacts.rows import AnyRow
from stages.measures.accuracy import Measure, mean_over_seeds_and_problems
from stages.study.curves import ACCURACY, MODES, Run, Values, at, measure_of

BASE = "base"
"""Name of the run that only evaluates the base policy."""


def result_rows(
    runs: Sequence[Run], baseline: str, read_at: Sequence[float] = (), measured: str = ACCURACY
) -> list[AnyRow]:
    """Rows of `ablation`: of each run (`seed` set), then of each variant over the seeds that it ended with.

    Intervals are over problems (or errors) and seeds; gains and differences are paired by both. What was `measured`
    is read off at each of the device-seconds `read_at` too.
    """
    rows = [row for run in runs for row in _of_run(run)]
    by_variant: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        if run.error is None:
            by_variant[run.variant][run.seed] = run
    for variant, ended in by_variant.items():
        measures = [
            measure
            for name in next((run.repairs for run in ended.values()), {})
            for measure in _mean(f"repair {name}", {seed: run.repairs[name] for seed, run in ended.items()})
        ]
        for cost, mode in product((*read_at, None), MODES):
            name, where = measure_of(mode, measured), "" if cost is None else f" at {cost:g} device-seconds"
            values = _values(name, ended, cost)
            measures += _mean(f"{mode} {measured}{where}", values)
            for other, words in ((BASE, "gain over"), (baseline, "difference to")):
                if variant not in (BASE, other):
                    others = _values(name, by_variant.get(other, {}), cost)
                    measures += _mean(f"{mode} {words} {other}{where}", _difference(values, others))
        rows += [_row(variant, None, measure) for measure in measures]
    return rows


def _values(measure: str, runs: Mapping[int, Run], cost: float | None) -> dict[int, Values]:
    """By seed, of each problem, at so many device-seconds; at the run's end for None."""
    points = {seed: run.result if cost is None else at(run.points, cost) for seed, run in runs.items()}
    return {seed: point.values[measure] for seed, point in points.items()}


def _difference(values: Mapping[int, Values], others: Mapping[int, Values]) -> dict[int, Values]:
    """Of the seeds that both have."""
    return {seed: values[seed] - others[seed] for seed in values.keys() & others.keys()}


def _mean(name: str, by_seed: Mapping[int, Values]) -> list[Measure]:
    """Nothing where there is no seed."""
    return [mean_over_seeds_and_problems("", name, [by_seed[seed] for seed in sorted(by_seed)])] if by_seed else []


def _of_run(run: Run) -> list[AnyRow]:
    if run.error is not None:
        return [_row(run.variant, run.seed, Measure(run.variant, "failed", 1.0), run.error)]
    result = run.result
    values = {"rounds": result.round, "device-seconds": result.device_seconds, "rollouts": result.rollouts}
    values |= {} if run.learning_rate is None else {"learning rate": run.learning_rate}
    return [_row(run.variant, run.seed, Measure(run.variant, name, value)) for name, value in values.items()]


def _row(variant: str, seed: int | None, measure: Measure, note: str | None = None) -> AnyRow:
    values = {name: getattr(measure, name) for name in ("measure", "value", "low", "high", "n")}
    return {"variant": variant, "seed": seed, **values, "note": note}
