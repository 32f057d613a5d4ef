"""The held-out end of a shuffled set: exact in size, apart in groups, drawn by the seed."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.holdout import order_heldout_last


def reachable(groups):
    """Every number of rows that a set of groups has, by trying all of them."""
    sizes = list(Counter(groups).values())
    return {sum(chosen) for n in range(len(sizes) + 1) for chosen in combinations(sizes, n)}


@given(st.lists(st.integers(0, 5), max_size=14), st.data())
def test_the_end_shares_no_group_and_has_the_size_asked_for(groups, data):
    heldout = data.draw(st.sampled_from(sorted(reachable(groups))))
    seed = data.draw(st.integers(0, 9))
    order = order_heldout_last(groups, heldout, seed)
    assert sorted(order) == list(range(len(groups)))
    cut = len(groups) - heldout
    assert not {groups[i] for i in order[:cut]} & {groups[i] for i in order[cut:]}
    assert order == order_heldout_last(groups, heldout, seed)


def test_seeds_hold_out_different_rows_and_shuffle_the_rest():
    orders = [order_heldout_last(range(40), 4, seed) for seed in range(5)]
    assert len({frozenset(order[-4:]) for order in orders}) == 5
    assert all(order[:36] != sorted(order[:36]) for order in orders)


def test_a_size_that_no_set_of_groups_has_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no set of groups has 3 of the 10 rows; the nearest has 4"):
        order_heldout_last(list("aaaabbbbbb"), 3, 0)
