"""Which repair is chosen, and why the others are not."""

from fractions import Fraction

import pyarrow as pa
import pytest

from stages.core.selection import is_correct, is_worthwhile, reaches_share, select_repair, share_of
from stages.measures.scores import correct_by_problem


def test_every_candidate_gets_its_reason():
    selection = select_repair(
        rewards_K=[None, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0],
        costs_K=[0.0, 0.0, 0.0, 0.0, 0.4, 0.3, 0.0],
        flagged_K=[False, False, True, None, False, False, False],
        cut_K=[True, True, False, False, False, False, True],
    )

    assert selection.chosen == 5
    assert selection.reasons == ["unscored", "wrong", "flagged", "unaudited", "costlier", "chosen", "cut"]


def test_ties_go_to_the_first_candidate():
    selection = select_repair([1.0, 1.0, 1.0], [0.5, 0.2, 0.2], [False] * 3)

    assert selection == (1, ["costlier", "chosen", "costlier"])


def test_nothing_feasible_chooses_nothing():
    assert select_repair([0.0, None], [0.1, 0.1], [False, False]) == (None, ["wrong", "unscored"])
    assert select_repair([], [], []) == (None, [])


def test_missing_reward_or_failure_outranks_the_verdict():
    assert select_repair([None, 0.0], [0.1, 0.1], [None, True]).reasons == ["unscored", "wrong"]


def test_threshold_is_inclusive():
    assert select_repair([0.6, 0.59], [0.1, 0.0], [False, False], threshold=0.6).chosen == 0


@pytest.mark.parametrize("tau", [0.1, 0.3, 0.55, 0.7, 0.9, 0.95, 1.0])
def test_a_reward_reaches_a_threshold_in_a_file_as_before_it(tau):
    """float32 has 0.8999999762 for 0.9."""
    stored = pa.array([tau, 0.9 * tau], pa.float32()).to_pylist()
    for rewards in ([tau, 0.9 * tau], stored):
        assert [is_correct(reward, tau) for reward in rewards] == [True, False]
        assert select_repair(rewards, [0.1, 0.0], [False, False], threshold=tau).chosen == 0
    scores = [{"problem_id": "p", "mode": "greedy", "reward": reward} for reward in stored]
    assert correct_by_problem(scores, "greedy", tau) == {"p": [True, False]}


@pytest.mark.parametrize("n", [7, 10, 20, 30, 100, 3000])
def test_a_share_is_reached_by_as_many_as_it_says(n):
    """0.55 * 20 is 11.000000000000002, 0.29 * 100 is 28.999999999999996."""
    for hundredths in range(1, 101):
        exact = Fraction(hundredths, 100)
        for hits in (int(exact * n) - 1, int(exact * n), int(exact * n) + 1):
            assert reaches_share(hits, n, hundredths / 100) is (Fraction(hits, n) >= exact)
    assert not reaches_share(0, 0, 0.5)


@pytest.mark.parametrize(("n", "share", "count"), [(150, 0.07, 10), (20, 0.55, 11), (50, 0.29, 14), (1000, 0.1, 100)])
def test_a_share_is_taken_as_it_is_written(n, share, count):
    """0.07 * 150 is 10.500000000000002, 0.29 * 50 is 14.499999999999998; both are halves, and go to the even count."""
    assert share_of(n, share) == count


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="argument"):
        select_repair([1.0, 1.0], [0.1], [False, False])


@pytest.mark.parametrize(
    ("tried", "feasible", "goes_on"),
    [(0, 0, True), (31, 0, True), (32, 0, False), (32, 4, False), (32, 5, True), (40, 6, True), (41, 6, False)],
)
def test_a_kind_is_repaired_until_it_is_known_not_to_pay(tried, feasible, goes_on):
    """5 of 32 are 0.156, 6 of 40 are 0.15."""
    assert is_worthwhile(tried, feasible, share=0.15, after=32) is goes_on
