"""DPO on gated log-ratios against a plain-Python loop that shares no code with it."""

import math

import pytest
import torch

from stages.core.preferences import dpo_loss, gated_log_ratio

LENGTHS = {"error": (4, 2, 5), "repair": (3, 6, 1)}


def side(name, seed):
    """Log-probs, reference, gate from 0 to 1 and mask of three responses of unequal lengths."""
    rng = torch.Generator().manual_seed(seed)
    lengths = LENGTHS[name]
    shape = (len(lengths), max(lengths))
    ref = -3 * torch.rand(shape, generator=rng) - 0.1
    return {
        "logprobs_BT": ref + 2 * torch.randn(shape, generator=rng),
        "ref_logprobs_BT": ref,
        "gate_BT": (torch.rand(shape, generator=rng) < 0.6) * torch.rand(shape, generator=rng),
        "response_mask_BT": torch.arange(shape[1]) < torch.tensor(lengths)[:, None],
    }


@pytest.fixture
def sides():
    return {"error": side("error", 1), "repair": side("repair", 2)}


def loss_of(sides, **options):
    return dpo_loss(gated_log_ratio(**sides["error"]), gated_log_ratio(**sides["repair"]), **options)


def by_loop(sides, beta):
    """Loss, margins, and each side's gradient, which for a pair is -+ beta sigmoid(-margin) times the gate."""
    pairs = len(LENGTHS["error"])
    loss, margins = 0.0, []
    gradient = {name: [[0.0] * max(LENGTHS[name]) for _ in range(pairs)] for name in sides}
    for p in range(pairs):
        reward = {}
        for name, part in sides.items():
            new, ref, gate = (part[key][p].tolist() for key in ("logprobs_BT", "ref_logprobs_BT", "gate_BT"))
            reward[name] = sum(gate[t] * (new[t] - ref[t]) for t in range(LENGTHS[name][p]))
        margins.append(beta * (reward["repair"] - reward["error"]))
        loss += math.log(1 + math.exp(-margins[p])) / pairs
        slope = beta / (1 + math.exp(margins[p])) / pairs
        for name, sign in (("error", 1), ("repair", -1)):
            for t in range(LENGTHS[name][p]):
                gradient[name][p][t] = sign * slope * float(sides[name]["gate_BT"][p, t])
    return loss, margins, gradient


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("beta", [0.1, 1.3])
def test_loss_margins_and_gradient_are_the_loop_s(sides, beta, gated):
    for part in sides.values():
        part["logprobs_BT"].requires_grad_()
        part["gate_BT"] = part["gate_BT"] if gated else part["response_mask_BT"].float()
    result = loss_of(sides, beta=beta)
    loss, margins, gradient = by_loop(sides, beta)
    assert result.loss.item() == pytest.approx(loss)
    assert result.margins_P.tolist() == pytest.approx(margins)
    result.loss.backward()
    for name, part in sides.items():
        torch.testing.assert_close(part["logprobs_BT"].grad, torch.tensor(gradient[name]))
    if not gated:
        ungated = {name: part | {"gate_BT": None} for name, part in sides.items()}
        assert loss_of(ungated, beta=beta).loss == result.loss


def test_a_pair_at_the_reference_costs_log_two(sides):
    for part in sides.values():
        part["ref_logprobs_BT"] = part["logprobs_BT"]
    result = loss_of(sides)
    assert result.loss.item() == pytest.approx(math.log(2))
    assert result.margins_P.tolist() == [0, 0, 0]


def test_beta_is_a_tenth_unless_told(sides):
    assert loss_of(sides).loss == loss_of(sides, beta=0.1).loss != loss_of(sides, beta=0.2).loss


def test_closed_tokens_and_those_outside_do_not_matter(sides):
    expected = loss_of(sides).loss
    for part in sides.values():
        shut = (part["gate_BT"] == 0) | ~part["response_mask_BT"]
        assert shut.any()
        part["ref_logprobs_BT"][shut] = math.nan
        part["logprobs_BT"][shut] = -math.inf
        part["gate_BT"][~part["response_mask_BT"]] = math.nan
        part["logprobs_BT"].requires_grad_()
    result = loss_of(sides)
    assert result.loss == expected
    result.loss.backward()
    for part in sides.values():
        open_BT = (part["gate_BT"] != 0) & part["response_mask_BT"]
        assert torch.equal(part["logprobs_BT"].grad != 0, open_BT)


def test_parts_of_a_batch_add_up_with_the_global_number_of_pairs(sides):
    whole = loss_of(sides).loss
    parts = [
        loss_of({name: {k: v[rows] for k, v in part.items()} for name, part in sides.items()}, num_pairs=3).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_the_reference_gets_no_gradient(sides):
    for part in sides.values():
        part["logprobs_BT"].requires_grad_()
        part["ref_logprobs_BT"].requires_grad_()
    loss_of(sides).loss.backward()
    assert all(part["ref_logprobs_BT"].grad is None for part in sides.values())
