"""Accuracy and its intervals, against hand values, enumeration and simulation."""

import math
from itertools import combinations

import numpy as np
import pytest

from stages.measures import accuracy
from stages.measures.accuracy import accuracy_at, is_better, mean_over_problems, share
from stages.measures.scores import correct_by_problem, summarize_by_kind, summarize_scores


def test_wilson_interval_by_hand():
    """8 of 10, z = 1.959964: centre (8 + z²/2) / (10 + z²), half-width z·sqrt(8·2/10 + z²/4) / (10 + z²)."""
    measure = share("section", "measure", 8, 10)
    assert (measure.value, measure.n) == (0.8, 10)
    assert (measure.low, measure.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert share("section", "measure", 0, 10).low == 0
    assert math.isnan(share("section", "measure", 0, 0).value)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_accuracy_at_k_is_the_share_of_choices_with_a_correct_draw(k):
    for correct in range(6):
        draws = [True] * correct + [False] * (5 - correct)
        chosen = [any(choice) for choice in combinations(draws, k)]
        assert accuracy_at([draws], k) == [pytest.approx(sum(chosen) / len(chosen))]


def test_accuracy_at_all_draws_is_whether_any_is_correct():
    assert accuracy_at([[False, True], [False, False], [True, True]], 2) == [1, 0, 1]


def test_accuracy_at_more_draws_than_there_are_is_refused():
    with pytest.raises(ValueError, match="fewer than 2 draws"):
        accuracy_at([[False, True], [False]], 2)


def test_better_is_by_more_than_the_order_of_a_sum():
    one, other = (mean_over_problems("", "", values).value for values in ([1, 1, 1 / 3], [1 / 3, 1, 1]))
    assert one != other
    assert not is_better(one, other)
    assert not is_better(other, one)
    assert is_better(other + 1 / 3000, one)
    assert is_better(0.0, math.nan)
    assert not is_better(math.nan, math.nan)
    assert not is_better(math.nan, 0.0)


def test_bootstrap_interval_covers_the_mean(monkeypatch):
    monkeypatch.setattr(accuracy, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    measures = [mean_over_problems("s", "m", rng.binomial(4, 0.3, 60) / 4) for _ in range(100)]
    assert sum(measure.low <= 0.3 <= measure.high for measure in measures) in range(88, 100)
    width = np.mean([measure.high - measure.low for measure in measures])
    assert width == pytest.approx(2 * 1.96 * math.sqrt(0.3 * 0.7 / 4 / 60), rel=0.1)


def test_a_mean_without_spread_has_no_interval():
    assert mean_over_problems("s", "m", [0.5, 0.5])[2:] == (0.5, None, None, 2)
    assert math.isnan(mean_over_problems("s", "m", []).value)


def scores(problem_id, kind, mode, *rewards):
    return [{"problem_id": problem_id, "kind": kind, "mode": mode, "reward": reward} for reward in rewards]


def test_unscored_draws_are_left_out():
    rows = scores("a", None, "sampled", 1.0, None, 0.5) + scores("b", None, "sampled", None)
    assert correct_by_problem(rows, "sampled", 1.0) == {"a": [True, False]}
    assert correct_by_problem(rows, "sampled", 0.5) == {"a": [True, True]}


def test_a_summary_by_hand():
    rows = scores("a", "sum", "sampled", 1.0, 0.0, 0.0, 0.0) + scores("a", "sum", "greedy", 1.0)
    rows += scores("b", "even", "sampled", 1.0, 1.0, 1.0, None) + scores("b", "even", "greedy", 0.0)
    rows += scores("a", "sum", "image_removed", 0.0) + scores("b", "even", "image_removed", 1.0)
    found = {m.measure: (m.value, m.n) for m in summarize_scores("s", rows, 1.0)}
    assert found == {
        "sampled accuracy": (pytest.approx((1 / 4 + 1) / 2), 2),
        "Acc@2": (pytest.approx((1 / 2 + 1) / 2), 2),
        "Acc@4": (1.0, 1),
        "greedy accuracy": (0.5, 2),
        "greedy accuracy, image removed": (0.5, 2),
    }
    by_kind = {m.measure: m.value for m in summarize_by_kind("s", rows, 1.0)}
    assert by_kind == {
        "sampled accuracy, sum": 0.25,
        "greedy accuracy, sum": 1.0,
        "sampled accuracy, even": 1.0,
        "greedy accuracy, even": 0.0,
    }
