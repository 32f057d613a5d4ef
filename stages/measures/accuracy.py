"""Accuracy with 95% intervals. Axes: P problems (or errors), K draws of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 9999
CONFIDENCE = 0.95
ROUNDING = 1e-9
"""Means of the same values differ by less: 1 + 1 + 1/3 and 1/3 + 1 + 1 do in their last digit."""


class Measure(NamedTuple):
    """A row of `summary`: a number with its interval and what it was measured on."""

    section: str
    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


def share(section: str, measure: str, hits: int, n: int) -> Measure:
    """A share of independent cases, with its Wilson interval; NaN of none."""
    if n == 0:
        return Measure(section, measure, float("nan"), n=0)
    interval = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Measure(section, measure, hits / n, interval.low, interval.high, n)


def mean_over_problems(section: str, measure: str, values_P: ArrayLike) -> Measure:
    """Mean of one value per problem, with a bootstrap interval over problems: draws of one problem are not
    independent. Differences of two models on the same problems make it the paired bootstrap."""
    values = np.asarray(values_P, np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return Measure(section, measure, float(values.mean()) if len(values) else float("nan"), n=len(values))
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=0
    ).confidence_interval
    return Measure(section, measure, float(values.mean()), float(interval.low), float(interval.high), len(values))


def mean_over_seeds_and_problems(section: str, measure: str, values_SP: ArrayLike) -> Measure:
    """Mean of one value per seed and problem, with a bootstrap interval over both: seeds and problems are drawn again
    independently of each other (pigeonhole bootstrap, arXiv 0712.1111), which is wide rather than narrow.

    One seed is a bootstrap over problems alone. Differences of two models on the same seeds and problems make it the
    paired bootstrap. A problem that is NaN with one seed is left out; n counts the others.
    """
    values = np.asarray(values_SP, np.float64)
    values = values[:, ~np.isnan(values).any(axis=0)]
    if len(values) == 1 or values.shape[1] == 0:
        return mean_over_problems(section, measure, values.mean(axis=0))
    drawn_seeds, drawn_problems = _drawn(*values.shape)
    means = np.einsum("rs,sp,rp->r", drawn_seeds, values, drawn_problems, optimize=True)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Measure(section, measure, float(values.mean()), float(low), float(high), values.shape[1])


@lru_cache(maxsize=1)
def _drawn(seeds: int, problems: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of the seeds (R, S) and of the problems (R, P) in each resample: the same for every measure."""
    rng = np.random.default_rng(0)
    drawn_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    drawn_problems = rng.multinomial(problems, np.full(problems, 1 / problems), RESAMPLES) / problems
    return drawn_seeds, drawn_problems


def is_better(accuracy: float, than: float) -> bool:
    """Whether it is higher by more than `ROUNDING`; any is better than NaN, where nothing could be scored."""
    return accuracy - than > ROUNDING or (math.isnan(than) and not math.isnan(accuracy))


def accuracy_at(correct_PK: Sequence[Sequence[bool]], k: int) -> list[float]:
    """Acc@k of each case: the chance that k of its K draws, taken without replacement, hold a correct one.

    With k = K it is whether any is correct; its mean over cases is the unbiased estimate (arXiv 2107.03374, eq. 1).
    Raises ValueError for a case of fewer than k draws.
    """
    if any(len(correct_K) < k for correct_K in correct_PK):
        raise ValueError(f"a case has fewer than {k} draws; leave it out of Acc@{k}")
    return [1 - _all_wrong(len(correct_K), sum(correct_K), k) for correct_K in correct_PK]


def _all_wrong(draws: int, correct: int, k: int) -> float:
    if draws - correct < k:
        return 0.0
    return float(np.prod(1 - k / np.arange(draws - correct + 1, draws + 1)))
