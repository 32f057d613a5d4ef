"""Which repair is chosen, and why the others are not."""

import pytest

from stages.core.selection import select_repair


def test_every_candidate_gets_its_reason():
    selection = select_repair(
        rewards_K=[None, 0.9, 1.0, 1.0, 1.0, 1.0],
        costs_K=[0.0, 0.0, 0.0, 0.0, 0.4, 0.3],
        flagged_K=[False, False, True, None, False, False],
    )

    assert selection.chosen == 5
    assert selection.reasons == ["unscored", "wrong", "flagged", "unaudited", "costlier", "chosen"]


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


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="argument"):
        select_repair([1.0, 1.0], [0.1], [False, False])
