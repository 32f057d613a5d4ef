"""Mismatch and truncated weights against values worked by hand and plain loops.

Axes: B sequences, T response tokens, padded.
"""

import math

import pytest
import torch

from stages.core.sampler_mismatch import mismatch, truncated_weights

MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])


def two_sides(seed=0, spread=0.7):
    generator = torch.Generator().manual_seed(seed)
    trainer = -3 * torch.rand(MASK.shape, generator=generator) - 0.1
    return trainer, trainer + spread * torch.randn(MASK.shape, generator=generator)


def tokens(values):
    """Those of the responses."""
    return [values[b, t].item() for b in range(len(MASK)) for t in range(MASK.shape[1]) if MASK[b, t]]


def test_worked_by_hand():
    """Weights 2, 1/2, 1 and 1: (4.5)^2 / (4 * 6.25)."""
    trainer = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    delta = torch.tensor([[math.log(2), -math.log(2), 0.0], [0.0, 5.0, 5.0], [5.0, 5.0, 5.0]])
    found = mismatch(trainer, trainer - delta, MASK)
    assert found == pytest.approx((2 * math.log(2) / 4, math.log(2), 4.5**2 / (4 * 6.25)))
    weights = truncated_weights(trainer, trainer - delta, MASK, cap=1.5)
    torch.testing.assert_close(weights, torch.tensor([[1.5, 0.5, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("seed", range(3))
def test_equal_a_plain_loop(seed):
    trainer, sampler = two_sides(seed)
    deltas = tokens(trainer - sampler)
    weights = [math.exp(delta) for delta in deltas]
    share = sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights))
    expected = (sum(map(abs, deltas)) / len(deltas), max(map(abs, deltas)), share)
    assert mismatch(trainer, sampler, MASK) == pytest.approx(expected, rel=1e-5)
    found = truncated_weights(trainer, sampler, MASK, cap=1.2)
    assert tokens(found) == pytest.approx([min(weight, 1.2) for weight in weights], rel=1e-5)


def test_equal_log_probs_do_not_differ():
    trainer, _ = two_sides()
    assert mismatch(trainer, trainer, MASK) == (0, 0, 1)
    assert torch.equal(truncated_weights(trainer, trainer, MASK, cap=1.0), MASK.float())


def test_a_shift_of_all_tokens_leaves_the_effective_sample_size():
    trainer, sampler = two_sides()
    shifted = mismatch(trainer - 0.25, sampler, MASK)
    assert shifted.effective_sample_size == pytest.approx(mismatch(trainer, sampler, MASK).effective_sample_size)
    assert mismatch(trainer - 0.25, trainer, MASK) == pytest.approx((0.25, 0.25, 1.0), rel=1e-5)


@pytest.mark.parametrize(("delta", "share", "weight"), [(2000.0, 1 / 4, 8.0), (-2000.0, 3 / 4, 0.0)])
def test_weights_that_no_float_holds(delta, share, weight):
    """One token of four outweighs all, or weighs nothing."""
    trainer = torch.zeros(MASK.shape)
    sampler = trainer.clone()
    sampler[1, 0] = -delta
    assert mismatch(trainer, sampler, MASK) == pytest.approx((500.0, 2000.0, share))
    found = truncated_weights(trainer, sampler, MASK, cap=8.0)
    assert tokens(found) == pytest.approx([1.0, 1.0, 1.0, weight])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_garbage_outside_the_response_does_not_leak(garbage):
    clean = two_sides()
    dirty = [side.masked_fill(MASK == 0, garbage) for side in clean]
    assert mismatch(*dirty, MASK) == mismatch(*clean, MASK)
    assert torch.equal(truncated_weights(*dirty, MASK, cap=2.0), truncated_weights(*clean, MASK, cap=2.0))


def test_no_tokens_and_no_gradient():
    trainer, sampler = two_sides()
    assert mismatch(trainer, sampler, torch.zeros_like(MASK)) == (0, 0, 1)
    assert not truncated_weights(trainer.requires_grad_(), sampler, MASK, cap=2.0).requires_grad


def test_unequal_shapes_are_refused():
    trainer, sampler = two_sides()
    with pytest.raises(ValueError, match=r"shape \(3, 2\) against a response mask of \(3, 3\)"):
        mismatch(trainer, sampler[:, :2], MASK)
    with pytest.raises(ValueError, match=r"shape \(3, 2\) against a response mask of \(3, 3\)"):
        truncated_weights(trainer[:, :2], sampler, MASK, cap=2.0)


@pytest.mark.parametrize("far", [95.0, 1e4])
def test_far_out_both_stay_numbers(far):
    """One token of four at a weight that leaves the others none, then at one of nought."""
    trainer = torch.full(MASK.shape, -1.0)
    for sign, share in ((1, 1 / 4), (-1, 3 / 4)):
        sampler = trainer.clone()
        sampler[0, 0] -= sign * far
        found = mismatch(trainer, sampler, MASK)
        assert found == pytest.approx((far / 4, far, share), rel=1e-4)
        weights = truncated_weights(trainer, sampler, MASK, cap=2.0)
        assert weights[0, 0].item() == pytest.approx(2.0 if sign == 1 else 0.0, abs=1e-30)
