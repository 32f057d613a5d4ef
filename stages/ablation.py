"""What an ablation's runs say: each variant beside the base policy and beside the baseline variant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.artifacts.columns import SAMPLES, SCORES
from stages.artifacts.store import iterate_rows
from stages.scoring.accuracy import Measure, mean_over_problems
from stages.scoring.score_summary import correct_by_problem
from stages.training.heldout import measure_errors

BASE = "base"
"""Name of the run that only evaluates the base policy."""
MODES = ("sampled", "greedy")
ByProblem = dict[str, float]


class VariantRun(NamedTuple):
    """One variant with one seed."""

    variant: str
    seed: int
    scores: Path | None = None
    """Output of `df evaluate`, where there was a round."""
    repair_model: Path | None = None
    """Output that trained it, with its held-out `samples`."""
    rounds: float = 0
    """With a fraction where it ends inside a round."""
    device_seconds: float = 0.0
    scores_before: Path | None = None
    """Of the policy before the last round, where the run matches another's cost inside that round."""
    share: float = 1.0
    """Of the last round that the cost allows: accuracy is read off the line between the two policies."""
    error: str | None = None


def ablation_rows(runs: Sequence[VariantRun], baseline: str, threshold: float) -> list[dict[str, Any]]:
    """Rows of `ablation`: of each run (`seed` set), then of each variant over the seeds that it ended with.

    Intervals over seeds are over problems (or errors), of each one's mean over seeds; gains and differences are
    paired by problem and seed.
    """
    rows = [row for run in runs for row in _of_run(run)]
    by_variant: dict[str, list[VariantRun]] = defaultdict(list)
    for run in runs:
        by_variant[run.variant] += [] if run.error else [run]
    for variant, ended in by_variant.items():
        measures = _repairs({run.seed: run.repair_model for run in ended if run.repair_model}, threshold)
        for mode in MODES:
            accuracy = {run.seed: _accuracy(run, mode, threshold) for run in ended if run.scores}
            measures += _mean_over_seeds(f"{mode} accuracy", accuracy)
            for other, measure in ((BASE, f"{mode} gain over {BASE}"), (baseline, f"{mode} difference to {baseline}")):
                if variant not in (BASE, other):
                    others = {run.seed: run for run in by_variant.get(other, ()) if run.scores}
                    gains = {
                        seed: _difference(values, _accuracy(others[seed], mode, threshold))
                        for seed, values in accuracy.items()
                        if seed in others
                    }
                    measures += _mean_over_seeds(measure, gains)
        rows += [_row(variant, None, measure) for measure in measures]
    return rows


def _of_run(run: VariantRun) -> list[dict[str, Any]]:
    if run.error is not None:
        return [_row(run.variant, run.seed, Measure(run.variant, "failed", 1.0), run.error)]
    measures = [
        Measure(run.variant, "rounds", run.rounds),
        Measure(run.variant, "device-seconds", run.device_seconds),
    ]
    return [_row(run.variant, run.seed, measure) for measure in measures]


def _row(variant: str, seed: int | None, measure: Measure, note: str | None = None) -> dict[str, Any]:
    values = {name: getattr(measure, name) for name in ("measure", "value", "low", "high", "n")}
    return {"variant": variant, "seed": seed, **values, "note": note}


def _accuracy(run: VariantRun, mode: str, threshold: float) -> ByProblem:
    """Of each problem, the share of draws that is correct, at the run's cost."""
    assert run.scores is not None
    after = _accuracy_of(run.scores, mode, threshold)
    if run.scores_before is None:
        return after
    before = _accuracy_of(run.scores_before, mode, threshold)
    return {
        problem: (1 - run.share) * before[problem] + run.share * after[problem] for problem in before.keys() & after
    }


def _accuracy_of(scores: Path, mode: str, threshold: float) -> ByProblem:
    correct = correct_by_problem(iterate_rows(scores, SCORES), mode, threshold)
    return {problem: sum(draws) / len(draws) for problem, draws in correct.items()}


def _difference(values: ByProblem, others: ByProblem) -> ByProblem:
    return {problem: value - others[problem] for problem, value in values.items() if problem in others}


def _mean_over_seeds(measure: str, by_seed: Mapping[int, ByProblem]) -> list[Measure]:
    """The mean over the problems that every seed has; nothing where there is no seed."""
    if not by_seed:
        return []
    common = set.intersection(*(set(values) for values in by_seed.values()))
    means = [sum(values[problem] for values in by_seed.values()) / len(by_seed) for problem in sorted(common)]
    return [mean_over_problems("", measure, means)]


def _repairs(folders: Mapping[int, Path], threshold: float) -> list[Measure]:
    """Of the repair models' held-out repairs."""
    by_seed = {
        seed: measure_errors(iterate_rows(folder / f"{SAMPLES.name}.parquet", SAMPLES), threshold)
        for seed, folder in folders.items()
    }
    return [
        measure
        for name in next(iter(by_seed.values()), {})
        for measure in _mean_over_seeds(f"repair {name}", {seed: found[name] for seed, found in by_seed.items()})
    ]
