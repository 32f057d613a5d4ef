"""Step masks and gate weights against values worked by hand and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.masks import evened_gate, gate_weights, leaky_gate, soft_weights, step_ids, step_mask


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


def test_a_leaky_gate_is_never_below_the_leak():
    assert leaky_gate([0.0, 0.125, 0.5, 1.0], 0.25).tolist() == [0.25, 0.25, 0.5, 1.0]
    closed = leaky_gate([0.0, 0.3, 1.0], 0.0)
    assert (closed.tolist(), closed.dtype) == (np.array([0, 0.3, 1], np.float32).tolist(), np.float32)
    with pytest.raises(ValueError, match=r"leak is 1; it must lie in \[0, 1\)"):
        leaky_gate([0.0], 1)


@pytest.mark.parametrize("gate", ["difference", "soft"])
def test_nothing_marked_gates_everything_out(gate):
    assert gate_weights([False] * 5, gate).tolist() == [0.0] * 5


def test_unknown_gate_and_useless_half_life_are_refused():
    with pytest.raises(ValueError, match="gate is 'hard'"):
        gate_weights([True], "hard")
    with pytest.raises(ValueError, match="half_life is 0"):
        soft_weights([True], half_life=0)


@pytest.mark.parametrize(
    ("step_end", "texts", "steps"),
    [
        ("newline", ["a", " b", ".\n", "c", "."], [0, 0, 0, 1, 1]),
        ("newline", ["a", "\n\n", "b\nc", "d"], [0, 0, 1, 2]),
        ("newline", ["a.", " b", "."], [0, 0, 0]),
        ("sentence", ["a", ".", " b", "?", " ", "c", "!"], [0, 0, 1, 1, 2, 2, 2]),
        ("sentence", ["is", " 3", ".", "14", ",", " e.g", ".x"], [0] * 7),
        ("sentence", ["so", " $", "3", ".", "$", " Then", " 4"], [0, 0, 0, 0, 0, 1, 1]),
        ("sentence", ["(a", ".)", "\n", "b", ".", "\n", "\n", "c"], [0, 0, 0, 1, 1, 1, 1, 2]),
        ("sentence", ["a", "\n", "b", "...", " c"], [0, 0, 1, 1, 2]),
        ("sentence", ["a", ". B.", " c"], [0, 0, 1]),
        ("sentence", ["a", ".", ""], [0, 0, 1]),
        ("sentence", ["cut", " off", ""], [0, 0, 1]),
        ("newline", ["a", "", "b"], [0, 1, 2]),
        ("newline", ["a"], [0]),
        ("sentence", [], []),
    ],
)
def test_steps_end_with_lines_and_with_sentences(step_end, texts, steps):
    assert step_ids(texts, step_end).tolist() == steps


def test_a_step_with_a_marked_token_is_marked_whole():
    mask = [False, False, True, False, False, False, True]

    assert step_mask(mask, [0, 0, 0, 1, 1, 2, 2]).tolist() == [True] * 3 + [False] * 2 + [True] * 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a", " b", ".", "\n", "", "3", ". c"])), max_size=30))
def test_step_masks_equal_a_plain_loop(tokens):
    mask, texts = [on for on, _ in tokens], [text for _, text in tokens]
    steps = step_ids(texts, "sentence").tolist()
    expected = [any(on and other == step for on, other in zip(mask, steps, strict=True)) for step in steps]

    assert steps == sorted(steps)
    assert step_mask(mask, steps).tolist() == expected


def test_soft_weights_go_on_top_of_steps():
    mask = step_mask([False, True, False, False], [0, 0, 1, 1])

    assert gate_weights(mask, "soft", half_life=1.0).tolist() == [1.0, 1.0, 0.5, 0.25]


def test_unknown_step_ends_and_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="step_end is 'paragraph'"):
        step_ids(["a"], "paragraph")
    with pytest.raises(ValueError, match=r"mask of shape \(1,\), step ids of shape \(2,\)"):
        step_mask([True], [0, 1])


def test_an_evened_gate_has_the_mean_of_an_ungated_response():
    assert evened_gate([0, 1, 0, 0], 1.0).tolist() == [0, 4, 0, 0]
    assert evened_gate([0, 1, 0, 0], 0.5).tolist() == [0, 2, 0, 0]
    assert evened_gate([0, 0.5, 0.25, 0.25], 1.0).tolist() == [0, 2, 1, 1]
    assert evened_gate([0, 1, 0, 0], 0.0).tolist() == [0, 1, 0, 0]
    assert evened_gate([1, 1], 1.0).tolist() == [1, 1]
    assert evened_gate([0, 0], 1.0).tolist() == [0, 0]
    assert evened_gate([], 1.0).tolist() == []
    with pytest.raises(ValueError, match=r"evenness is 1.5; it must lie in \[0, 1\]"):
        evened_gate([1], 1.5)
