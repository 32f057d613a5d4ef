"""GAE, whitening and the value loss against values worked by hand and a plain-Python loop.

Axes: B sequences, T response tokens, padded.
"""

import math

import pytest
import torch

from stages.core.objectives import policy_loss
from stages.core.values import Fit, explained_variance, gae, value_loss, whiten

LENGTHS = [5, 1, 0, 8]
MASK = torch.arange(8) < torch.tensor(LENGTHS)[:, None]


def random_BT(seed):
    return torch.randn(MASK.shape, generator=torch.Generator().manual_seed(seed))


def gae_by_loop(rewards, values, gamma, lam):
    """`A_t` as the sum over k of `(γλ)^k δ_(t+k)`, response by response."""
    ends = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, ends, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_a_plain_loop(gamma, lam):
    rewards_BT, values_BT = random_BT(0), random_BT(1)
    found = gae(rewards_BT, values_BT, MASK, gamma=gamma, lam=lam)
    for b, length in enumerate(LENGTHS):
        rewards, values = rewards_BT[b, :length].tolist(), values_BT[b, :length].tolist()
        advantages = gae_by_loop(rewards, values, gamma, lam) if length else []
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        assert found.advantages_BT[b, :length].tolist() == pytest.approx(advantages, rel=1e-5, abs=1e-6)
        assert found.returns_BT[b, :length].tolist() == pytest.approx(returns, rel=1e-5, abs=1e-6)
        assert not found.advantages_BT[b, length:].any()
        assert not found.returns_BT[b, length:].any()


def test_gae_worked_by_hand():
    """δ = (0 + 3/4 - 1/2, 1 - 3/4) = (1/4, 1/4); A = (1/4 + 1/2 * 1/4, 1/4)."""
    rewards_BT, values_BT = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.75]])
    found = gae(rewards_BT, values_BT, torch.ones(1, 2), gamma=1.0, lam=0.5)
    assert found.advantages_BT.tolist() == [[0.375, 0.25]]
    assert found.returns_BT.tolist() == [[0.875, 1.0]]


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_garbage_outside_the_response_does_not_leak(garbage):
    clean = [random_BT(seed) for seed in range(3)]
    dirty = [values_BT.masked_fill(~MASK, garbage) for values_BT in clean]
    for function in (
        lambda rewards, values, _: gae(rewards, values, MASK, gamma=1.0, lam=0.95),
        lambda advantages, *_: (whiten(advantages, MASK),),
        lambda *values: value_loss(*values, MASK, clip=0.2)[:2],
    ):
        assert all(torch.equal(a, b) for a, b in zip(function(*clean), function(*dirty), strict=True))


def test_whitening_is_over_all_response_tokens():
    """Of 1, 2, 3 and 6: mean 3, unbiased variance (4 + 1 + 0 + 9) / 3."""
    advantages_BT = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    mask_BT = torch.tensor([[1, 1, 1], [1, 0, 0]])
    std = math.sqrt(14 / 3) + 1e-4
    expected = torch.tensor([[-2 / std, -1 / std, 0.0], [3 / std, 0.0, 0.0]])
    torch.testing.assert_close(whiten(advantages_BT, mask_BT), expected)


@pytest.mark.parametrize("values", [[0.7], [0.9] * 9, [0.0] * 3])
def test_equal_advantages_whiten_to_nothing(values):
    found = whiten(torch.tensor([values]), torch.ones(1, len(values)))
    assert found.abs().max() < 1e-6


def test_a_closed_token_counts_in_the_whitening_and_has_no_gradient():
    """The gate comes after: closing tokens leaves the others' advantages as they are."""
    advantages_BT = whiten(random_BT(2), MASK)
    gate_BT = (random_BT(3) > 0).float()

    def gradient(gate_BT):
        new = torch.zeros(MASK.shape, requires_grad=True)
        policy_loss(
            "ppo",
            logprobs_BT=new,
            old_logprobs_BT=torch.zeros(MASK.shape),
            advantages_B=advantages_BT,
            response_mask_BT=MASK,
            gate_BT=gate_BT,
        ).loss.backward()
        return new.grad

    gated, ungated = gradient(gate_BT), gradient(None)
    torch.testing.assert_close(ungated, -advantages_BT / MASK.sum())
    assert ungated[MASK & (gate_BT == 0)].all()
    assert torch.equal(gated, torch.where(gate_BT == 0, 0.0, ungated))


# Return 1, clip 1/5. Old value, new value, loss, its slope in the new value, whether the clip cuts the gradient:
# inside the clip; beyond it towards the return; beyond it and past the return; away from the return.
BY_HAND = [
    (0.5, 0.6, 0.4**2 / 2, -0.4, False),
    (0.5, 0.8, 0.3**2 / 2, 0.0, True),
    (0.5, 1.4, 0.4**2 / 2, 0.4, False),
    (0.5, 0.2, 0.8**2 / 2, -0.8, False),
]


@pytest.mark.parametrize(("old", "new", "loss", "slope", "cut"), BY_HAND)
def test_the_clipped_value_loss_worked_by_hand(old, new, loss, slope, cut):
    values_BT = torch.tensor([[new]], requires_grad=True)
    found = value_loss(values_BT, torch.tensor([[old]]), torch.ones(1, 1), torch.ones(1, 1), clip=0.2)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(loss, rel=1e-5)
    assert values_BT.grad.item() == pytest.approx(slope, rel=1e-5)
    assert found.clip_fraction.item() == cut


def test_the_value_loss_is_a_mean_over_the_global_tokens():
    old, new, loss, _, cut = zip(*BY_HAND, strict=True)
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])

    def padded(values):
        return torch.zeros(2, 3).masked_scatter(mask_BT, torch.tensor(values))

    rows = padded(new), padded(old), torch.ones(2, 3), mask_BT
    whole = value_loss(*rows, clip=0.2)
    assert whole.loss.item() == pytest.approx(sum(loss) / 4, rel=1e-5)
    assert whole.clip_fraction.item() == sum(cut) / 4
    parts = [value_loss(*(tensor[b : b + 1] for tensor in rows), clip=0.2, num_tokens=4) for b in range(2)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-6)


def test_explained_variance_is_over_the_tokens_of_all_parts():
    """Returns 0, 1, 2, 3 (variance 5/4); errors 1, 1, 0, 0 (variance 1/4)."""
    returns, values = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[-1.0, 0.0, 2.0, 3.0]])
    parts = [
        value_loss(values[:, part], values[:, part], returns[:, part], torch.ones(1, n), clip=0.2).fit
        for part, n in ((slice(0, 1), 1), (slice(1, 4), 3))
    ]
    assert explained_variance(parts) == pytest.approx(1 - 0.25 / 1.25)


def test_equal_returns_have_no_variance_to_explain():
    assert explained_variance([Fit(2, 2.0, 2.0, 1.0, 1.0)]) == 0


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 3\) against a response mask of \(1, 2\)"):
        whiten(torch.ones(1, 3), torch.ones(1, 2))
