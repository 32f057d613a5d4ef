"""Other papers' token credit against values by hand and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.token_credit import answer_gap_advantages, entropy_gates, highest, perception_gate

RESPONSES = st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]), max_size=6), max_size=4)


def test_the_fifth_of_the_whole_batch_s_tokens_is_open():
    """Ten tokens in responses of seven and three: the two highest lie in one of them."""
    gates = entropy_gates([[0.1, 0.9, 0.2, 0.8, 0.3, 0.0, 0.4], [0.5, 0.6, 0.7]])
    assert [gate_T.tolist() for gate_T in gates] == [[0, 1, 0, 1, 0, 0, 0], [0, 0, 0]]
    assert {gate_T.dtype for gate_T in gates} == {np.dtype(np.float32)}


@settings(deadline=None)
@given(RESPONSES, st.sampled_from([0.2, 0.4, 1.0]))
def test_entropy_gates_equal_a_plain_loop(responses, share):
    """A token is open where fewer tokens are above it than there is room for: so are all that tie with the last."""
    tokens = [value for response in responses for value in response]
    room = math.ceil(round(share * 10) * len(tokens) / 10)
    expected = [[float(sum(other > value for other in tokens) < room) for value in own] for own in responses]
    assert [gate_T.tolist() for gate_T in entropy_gates(responses, share=share)] == expected


@pytest.mark.parametrize(
    ("values", "share", "opened"),
    [
        ([], 0.4, []),
        ([3.0], 0.2, [True]),
        ([0.0, 0.0, 0.0], 0.4, [True, True, True]),
        ([1.0, 2.0, 1.0, 1.0, 0.0], 0.4, [True, True, True, True, False]),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.4, [False, False, False, True, True]),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.4, [False, False, False, True, True, True]),
        (list(range(15)), 0.2, [False] * 12 + [True] * 3),
    ],
)
def test_the_highest_values_and_those_that_tie_with_the_last(values, share, opened):
    assert highest(values, share).tolist() == opened


@pytest.mark.parametrize(
    ("image_kls", "gate"),
    [
        ([0.0, 3.0, 0.5, 2.0, 0.1], [0, 1, 0, 1, 0]),
        ([0.1, 0.2, 0.3], [0, 1, 1]),
        ([0.0], [1]),
        ([0.0, 0.0, 0.0, 0.0], [1, 1, 1, 1]),
        ([], []),
    ],
)
def test_two_fifths_of_each_response_are_open(image_kls, gate):
    found = perception_gate(image_kls)
    assert (found.tolist(), found.dtype) == (gate, np.float32)


def test_answer_gaps_weigh_advantages_by_their_sign():
    """e^0.1 lies inside the bounds 0.8 and 1.2, e^0.5 and e^-0.5 outside; half of each advantage is weighed."""
    gaps = [0.0, 0.1, 0.5, -0.5]
    up = [0.5 + 0.5 * weight for weight in (1.0, math.exp(0.1), 1.2, 0.8)]
    down = [0.5 + 0.5 * weight for weight in (1.0, math.exp(-0.1), 0.8, 1.2)]
    assert answer_gap_advantages(2.0, gaps).tolist() == pytest.approx([2 * weight for weight in up])
    assert answer_gap_advantages(-2.0, gaps).tolist() == pytest.approx([-2 * weight for weight in down])
    assert answer_gap_advantages(0.0, gaps).tolist() == [0] * 4
    assert answer_gap_advantages(1.0, []).tolist() == []


@settings(deadline=None)
@given(
    st.floats(-3, 3),
    st.lists(st.floats(-30, 30), max_size=5),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.2, 0.9]),
)
def test_answer_gap_advantages_equal_a_plain_loop(advantage, gaps, weight, clip):
    expected = []
    for gap in gaps:
        ratio = math.exp(gap if advantage > 0 else -gap if advantage < 0 else 0)
        expected.append(advantage * (1 - weight + weight * min(max(ratio, 1 - clip), 1 + clip)))
    assert answer_gap_advantages(advantage, gaps, weight=weight, clip=clip).tolist() == pytest.approx(expected)
