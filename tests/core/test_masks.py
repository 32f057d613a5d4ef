"""Gate weights against values worked by hand and a plain loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.masks import gate_weights, soft_weights


def test_soft_weights_halve_every_half_life_on_both_sides():
    weights = soft_weights([False, False, True, False, False, False, True], half_life=1.0)

    assert weights.tolist() == [0.25, 0.5, 1.0, 0.5, 0.25, 0.5, 1.0]


def test_soft_weights_keep_one_in_256_and_drop_what_is_below():
    weights = soft_weights([True] + [False] * 20)

    assert weights[16] == 1 / 256
    assert not weights[17:].any()


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.sampled_from([0.5, 2.0, 7.0]))
def test_soft_weights_equal_a_plain_loop(mask, half_life):
    marked = [t for t, on in enumerate(mask) if on]
    expected = [max((2 ** (-abs(t - m) / half_life) for m in marked), default=0.0) for t in range(len(mask))]
    expected = [w if w >= 1 / 256 else 0.0 for w in expected]

    assert soft_weights(mask, half_life=half_life) == pytest.approx(expected)


def test_gates_of_each_kind_are_float32():
    mask = np.array([False, True, False])
    expected = {"difference": [0, 1, 0], "soft": [0.5, 1, 0.5], "none": [1, 1, 1]}
    for gate, weights in expected.items():
        gated = gate_weights(mask, gate, half_life=1.0)
        assert gated.dtype == np.float32
        assert gated.tolist() == weights


@pytest.mark.parametrize("gate", ["difference", "soft"])
def test_nothing_marked_gates_everything_out(gate):
    assert gate_weights([False] * 5, gate).tolist() == [0.0] * 5


def test_unknown_gate_and_useless_half_life_are_refused():
    with pytest.raises(ValueError, match="gate is 'hard'"):
        gate_weights([True], "hard")
    with pytest.raises(ValueError, match="half_life is 0"):
        soft_weights([True], half_life=0)
