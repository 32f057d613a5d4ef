"""PRIME's loss and advantages against plain-Python loops that share no code with them."""

import math

import numpy as np
import pytest
import torch

from stages.core.process_rewards import outcome_loss, process_advantages

REWARDS = [[0.3, -0.2, 0.5], [0.1], [-0.4, 0.2, 0.6, -0.1, 0.05], [0.7, -0.9]]
OUTCOMES = [True, False, False, True]


def advantage_by_loop(rewards, outcomes, i, t, gamma):
    """PRIME, eq. 5, term by term."""
    others = [j for j in range(len(rewards)) if j != i]
    baseline = sum(sum(rewards[j]) / len(rewards[j]) for j in others) / len(others)
    process = sum(gamma ** (s - t) * (rewards[i][s] - baseline) for s in range(t, len(rewards[i])))
    return process + outcomes[i] - sum(outcomes[j] for j in others) / len(others)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_advantages_are_the_loop_s(gamma):
    found = process_advantages([np.array(own) for own in REWARDS], OUTCOMES, gamma=gamma)
    for i, own in enumerate(REWARDS):
        expected = [advantage_by_loop(REWARDS, OUTCOMES, i, t, gamma) for t in range(len(own))]
        assert found[i].tolist() == pytest.approx(expected)


def test_two_responses_by_hand():
    """Mean rewards 2 and 4; token by token r - 4 = -3, -1 and r - 2 = 2, summed from the end; outcomes 1 and 0."""
    found = process_advantages([np.array([1.0, 3.0]), np.array([4.0])], [True, False])
    assert [own.tolist() for own in found] == [[-4 + 1, -1 + 1], [2 - 1]]


def test_without_process_rewards_the_leave_one_out_of_outcomes_is_left():
    found = process_advantages([np.zeros(n) for n in (1, 3, 2)], [True, False, False])
    assert [own.tolist() for own in found] == [[1.0], [-0.5] * 3, [-0.5] * 2]


def test_a_response_alone_has_no_baseline():
    assert process_advantages([np.array([0.5, 0.7])], [True])[0].tolist() == [0, 0]


def test_the_loss_is_the_loop_s_and_parts_add_up():
    log_ratios = [3.0, -2.0, 0.0, 40.0]
    expected = 0.0
    for log_ratio, outcome in zip(log_ratios, OUTCOMES, strict=True):
        chance = 1 / (1 + math.exp(-0.05 * log_ratio))
        expected -= math.log(chance if outcome else 1 - chance) / 4
    ratios_B, outcomes_B = torch.tensor(log_ratios), torch.tensor(OUTCOMES)
    assert outcome_loss(ratios_B, outcomes_B).item() == pytest.approx(expected)
    assert outcome_loss(2 * ratios_B, outcomes_B, beta=0.025).item() == pytest.approx(expected)
    parts = [outcome_loss(ratios_B[cut], outcomes_B[cut], num_sequences=4) for cut in (slice(1), slice(1, 4))]
    assert sum(parts).item() == pytest.approx(expected)


def test_the_loss_stands_log_ratios_that_saturate_it():
    ratios_B = torch.tensor([1e5, -1e5], requires_grad=True)
    loss = outcome_loss(ratios_B, torch.tensor([False, True]))
    loss.backward()
    assert loss.item() == pytest.approx(5000)
    assert ratios_B.grad.tolist() == pytest.approx([0.025, -0.025])
