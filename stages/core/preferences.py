"""Preference pairs over token log-probabilities: an error and its repair, each with a token-level gate (eq. 10).

Axes: B responses, P pairs, T response tokens, padded. Losses are minimised.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

DPO_BETA = 0.1


class PreferenceLoss(NamedTuple):
    """`loss` is a scalar with a graph; the margins are detached."""

    loss: Tensor
    margins_P: Tensor
    """What the repair's implicit reward is above the error's; a pair counts as told apart where it is above 0."""


def gated_log_ratio(
    logprobs_BT: Tensor, ref_logprobs_BT: Tensor, *, response_mask_BT: Tensor, gate_BT: Tensor | None = None
) -> Tensor:
    """`sum_t g_t (l_t - lref_t)` over a response's tokens, in nats; float32 of shape (B,).

    The gate is eq. 10's; None is 1 everywhere. A token outside the mask, or whose gate is 0, has no gradient and its
    log-probs, of any value, do not matter.
    """
    gate_BT = response_mask_BT.float() if gate_BT is None else gate_BT.float()
    open_BT = response_mask_BT.bool() & (gate_BT != 0)
    # The log-probs are cut out first: outside, inf and nan would reach the gradient through the product.
    new_BT, ref_BT = (torch.where(open_BT, values_BT.float(), 0) for values_BT in (logprobs_BT, ref_logprobs_BT))
    return (torch.where(open_BT, gate_BT, 0) * (new_BT - ref_BT.detach())).sum(-1)


def dpo_loss(
    error_log_ratio_P: Tensor, repair_log_ratio_P: Tensor, *, beta: float = DPO_BETA, num_pairs: int | None = None
) -> PreferenceLoss:
    """`-log sigmoid(beta (repair - error))`, summed over pairs / the global number of pairs (arXiv 2305.18290, eq. 7).

    The log-ratios are `gated_log_ratio`'s, so with gate 1 this is DPO as published. `num_pairs` counts the pairs of
    the whole optimisation batch (default: these): losses of its parts add up to its loss.
    """
    margins_P = beta * (repair_log_ratio_P - error_log_ratio_P)
    loss = -logsigmoid(margins_P).sum() / (len(margins_P) if num_pairs is None else num_pairs)
    return PreferenceLoss(loss, margins_P.detach())
