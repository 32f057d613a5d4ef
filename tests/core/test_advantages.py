"""Advantages and the overlong penalty, worked by hand."""

import math

import pytest
import torch

from stages.core.advantages import group_advantages, overlong_penalty


def test_group_advantages_use_the_unbiased_std():
    # Mean 1/4; deviations 3/4 and three of -1/4; variance (9/16 + 3/16) / 3 = 1/4, std 1/2.
    advantages = group_advantages([1.0, 0.0, 0.0, 0.0])

    assert advantages.dtype == torch.float32
    assert advantages.tolist() == pytest.approx([0.75 / 0.5001] + [-0.25 / 0.5001] * 3)


def test_group_advantages_without_scaling_are_centred_rewards():
    assert group_advantages(torch.tensor([1.0, 0.5, 0.0]), scale="none").tolist() == [0.5, 0.0, -0.5]


@pytest.mark.parametrize("rewards", [[0.7], [0.9] * 9, [1.0] * 8, [0.1] * 6])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_equal_rewards_and_groups_of_one_get_nothing(rewards, scale):
    """Six times 0.1, divided by six, is 0.09999999999999999: an advantage that is not 0 would be trained on."""
    assert group_advantages(rewards, scale=scale).tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_null_rewards_are_refused_with_their_place(bad):
    with pytest.raises(ValueError, match=r"rewards_G\[1\] is (nan|inf); leave unscored responses out"):
        group_advantages([1.0, bad, 0.0])


def test_nested_groups_and_unknown_scales_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        group_advantages([[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="scale is 'batch'"):
        group_advantages([1.0, 0.0], scale="batch")


def test_overlong_penalty_falls_linearly_over_the_buffer():
    lengths = torch.tensor([0, 80, 81, 90, 100, 150])

    penalty = overlong_penalty(lengths, max_length=100, buffer=20)

    assert penalty.tolist() == pytest.approx([0.0, 0.0, -0.05, -0.5, -1.0, -1.0])


@pytest.mark.parametrize("buffer", [0, 101])
def test_overlong_buffer_outside_the_budget_is_refused(buffer):
    with pytest.raises(ValueError, match=f"buffer is {buffer} tokens"):
        overlong_penalty(torch.tensor([1]), max_length=100, buffer=buffer)
