"""PRIME (arXiv 2502.01456): a model of outcomes whose log-ratio to a reference is a reward for each token.

Axes: B responses, G rollouts of one group, T tokens of a response. The implicit reward of a token is
`r_t = beta q_t`, `q_t = l_phi - l_ref`.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def outcome_loss(
    log_ratio_B: Tensor, outcomes_B: Tensor, *, beta: float = 0.05, num_sequences: int | None = None
) -> Tensor:
    """Cross-entropy of `sigmoid(beta sum_t q_t)` on the outcome, over the global number of sequences.

    `log_ratio_B` is `sum_t q_t` in nats, `outcomes_B` bool: the response is correct. `num_sequences` counts the whole
    optimisation batch (default: these): losses of its parts add up to its loss.
    """
    total = binary_cross_entropy_with_logits(beta * log_ratio_B, outcomes_B.float(), reduction="sum")
    return total / (len(log_ratio_B) if num_sequences is None else num_sequences)


def process_advantages(
    rewards: Sequence[NDArray[Any]], outcomes_G: Sequence[bool], *, gamma: float = 1.0
) -> list[NDArray[np.float64]]:
    """Each token's advantage in one group, (T,) for each of its G responses (PRIME, eq. 5).

    `A_t = sum_{s>=t} gamma^(s-t) (r_s - b) + o - c`: b is the mean over the other responses of the mean reward over
    each one's tokens, c the mean of the others' outcomes. `rewards` are the implicit process rewards, (T,) each. A
    group of one has no baseline and gets 0.

    The published code departs from the equation: it leaves the end token's reward out, takes `(r_s - m) / (G - 1)`
    more, with m the response's own mean reward, scales process rewards by the batch's largest return, weighs both
    parts 5, and whitens the sum.
    """
    if len(rewards) == 1:
        return [np.zeros(len(rewards[0]))]
    means_G = np.array([reward_T.sum() / max(len(reward_T), 1) for reward_T in rewards])
    process_G, outcome_G = _mean_of_others(means_G), _mean_of_others(np.asarray(outcomes_G, np.float64))
    return [
        _returns(reward_T - process, gamma) + outcome - baseline
        for reward_T, outcome, process, baseline in zip(rewards, outcomes_G, process_G, outcome_G, strict=True)
    ]


def _mean_of_others(values_G: NDArray[np.float64]) -> NDArray[np.float64]:
    others_G: NDArray[np.float64] = (values_G.sum() - values_G) / (len(values_G) - 1)
    return others_G


def _returns(rewards_T: NDArray[Any], gamma: float) -> NDArray[np.float64]:
    """`sum_{s>=t} gamma^(s-t) r_s`."""
    return np.array(list(accumulate(rewards_T[::-1], lambda later, reward: reward + gamma * later))[::-1], np.float64)
