"""A critic's part of PPO: advantages from its values, their whitening, and its own loss (eq. 24-28).

Axes: B sequences, T response tokens, padded. `*_BT` and masks share one shape, and values outside the response mask,
of any dtype, do not matter.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stages.core.advantages import STD_FLOOR
from stages.core.objectives import inside_mask


class CriticSettings(NamedTuple):
    """Discount γ and λ of `gae`, the clip of `value_loss` in units of reward, and the weight of that loss.

    `critic_rate` is the value head's learning rate over the model's: a fresh layer has further to go.
    """

    gamma: float = 1.0
    gae_lambda: float = 0.95
    value_clip: float = 0.2
    value_coef: float = 0.1
    critic_rate: float = 10.0


class Estimate(NamedTuple):
    """Both (B, T), float32, 0 outside the response mask."""

    advantages_BT: Tensor
    returns_BT: Tensor


class Fit(NamedTuple):
    """Sums over response tokens of returns R and of their errors R - V; those of a batch's parts add up."""

    tokens: float
    returns: float
    returns_squared: float
    errors: float
    errors_squared: float


class ValueLoss(NamedTuple):
    """`loss` is a scalar with a graph; `clip_fraction` is the share of these rows' tokens whose gradient is cut."""

    loss: Tensor
    clip_fraction: Tensor
    fit: Fit


def gae(rewards_BT: Tensor, values_BT: Tensor, response_mask_BT: Tensor, *, gamma: float, lam: float) -> Estimate:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16), and the returns `A + V` that the critic learns.

    `A_t = δ_t + γλ A_(t+1)` with `δ_t = r_t + γ V_(t+1) - V_t`; after the last response token both are 0, so a
    response that was cut at the length limit ends there too. Raises ValueError on unequal shapes.
    """
    mask_BT = response_mask_BT.bool()
    rewards_BT, values_BT = inside_mask(mask_BT, rewards_BT), inside_mask(mask_BT, values_BT)
    advantages_BT = torch.zeros_like(values_BT)
    next_advantage_B = next_value_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(mask_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantages_BT[:, t] = delta_B + gamma * lam * next_advantage_B
        next_advantage_B = torch.where(mask_BT[:, t], advantages_BT[:, t], next_advantage_B)
        next_value_B = torch.where(mask_BT[:, t], values_BT[:, t], next_value_B)
    advantages_BT = inside_mask(mask_BT, advantages_BT)
    return Estimate(advantages_BT, advantages_BT + values_BT)


def whiten(advantages_BT: Tensor, response_mask_BT: Tensor) -> Tensor:
    """`(A - mean) / (std + 1e-4)` over all response tokens of the global batch, unbiased std; float32, (B, T).

    Pass every row of the optimizer step. Gates multiply the result: they have no part in the mean or the deviation.
    A batch of one token gets 0. Raises ValueError on unequal shapes.
    """
    mask_BT = response_mask_BT.bool()
    values_N = inside_mask(mask_BT, advantages_BT)[mask_BT].double()
    std = values_N.std(correction=1) if len(values_N) > 1 else 0.0
    values_N = (values_N - values_N.mean()) / (std + STD_FLOOR)
    return torch.zeros(mask_BT.shape, device=mask_BT.device).masked_scatter(mask_BT, values_N.float())


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    response_mask_BT: Tensor,
    *,
    clip: float,
    num_tokens: int | None = None,
) -> ValueLoss:
    """`½ max((V - R)², (clamp(V, V_old ± clip) - R)²)`, summed over response tokens / `num_tokens`.

    `num_tokens` is the global batch's number of response tokens (default: this batch's), so the losses of its parts
    add up to its loss. No gate enters: a token that the policy does not learn from still has a value.
    Raises ValueError on unequal shapes.
    """
    mask_BT = response_mask_BT.bool()
    new_BT = inside_mask(mask_BT, values_BT)
    old_BT, returns_BT = inside_mask(mask_BT, old_values_BT).detach(), inside_mask(mask_BT, returns_BT).detach()
    free_BT = (new_BT - returns_BT).square()
    clipped_BT = (new_BT.clamp(old_BT - clip, old_BT + clip) - returns_BT).square()
    tokens = int(mask_BT.sum())
    total = torch.maximum(free_BT, clipped_BT).sum() / 2
    return ValueLoss(
        total / max(tokens if num_tokens is None else num_tokens, 1),
        (clipped_BT > free_BT).sum() / max(tokens, 1),
        _fit(returns_BT[mask_BT].double(), new_BT.detach()[mask_BT].double()),
    )


def explained_variance(parts: Sequence[Fit]) -> float:
    """`1 - Var(R - V) / Var(R)` over the tokens of all parts; 0 where the returns do not vary."""
    whole = Fit(*(sum(column) for column in zip(*parts, strict=True)))
    variance = whole.returns_squared / whole.tokens - (whole.returns / whole.tokens) ** 2
    unexplained = whole.errors_squared / whole.tokens - (whole.errors / whole.tokens) ** 2
    return 1 - unexplained / variance if variance > 0 else 0.0


def _fit(returns_N: Tensor, values_N: Tensor) -> Fit:
    errors_N = returns_N - values_N
    sums = (returns_N.sum(), returns_N.square().sum(), errors_N.sum(), errors_N.square().sum())
    return Fit(len(returns_N), *(value.item() for value in sums))
