"""How far the trainer's log-probs are from those of the engine that sampled, and what corrects for it.

Axes: B sequences, T response tokens, padded. `*_BT` and masks share one shape, and values outside the response mask,
of any dtype, do not matter.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stages.core.objectives import inside_mask


class Mismatch(NamedTuple):
    """Mean and largest |Δ| in nats, and the share of the tokens that is left as effective sample size, in (0, 1]."""

    mean: float
    largest: float
    effective_sample_size: float


@torch.no_grad()
def mismatch(trainer_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, response_mask_BT: Tensor) -> Mismatch:
    """Of Δ = trainer - sampler over the response tokens of all rows, each token counting once.

    The effective sample size (Kish) is of the token weights w = exp(Δ), as a share of their number n:
    `(Σw)² / (n Σw²)`. It is 1 where all weights are equal. No tokens: 0, 0 and 1. Raises ValueError on unequal shapes.
    """
    mask_BT = response_mask_BT.bool()
    trainer_BT, sampler_BT = inside_mask(mask_BT, trainer_logprobs_BT), inside_mask(mask_BT, sampler_logprobs_BT)
    delta_N = (trainer_BT - sampler_BT)[mask_BT].double()
    if not len(delta_N):
        return Mismatch(0.0, 0.0, 1.0)
    # A common factor leaves the share as it is, and the largest weight is then 1.
    weights_N = torch.exp(delta_N - delta_N.max())
    share = weights_N.sum().square() / (len(delta_N) * weights_N.square().sum())
    return Mismatch(delta_N.abs().mean().item(), delta_N.abs().max().item(), share.item())


@torch.no_grad()
def truncated_weights(
    old_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, response_mask_BT: Tensor, *, cap: float
) -> Tensor:
    """`min(exp(old - sampler), cap)` at response tokens, without gradient; float32 of shape (B, T), 0 elsewhere.

    Truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training"): `old` are the trainer's log-probs under the weights that sampled. `policy_loss` takes the result as
    `weights_BT`. Raises ValueError on unequal shapes.
    """
    mask_BT = response_mask_BT.bool()
    delta_BT = inside_mask(mask_BT, old_logprobs_BT) - inside_mask(mask_BT, sampler_logprobs_BT)
    return inside_mask(mask_BT, torch.exp(delta_BT.clamp(max=math.log(cap))))
