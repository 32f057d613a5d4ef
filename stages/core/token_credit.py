"""Token credit of other papers on the rollout group. Axes: T tokens of one response, N tokens of several."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

ENTROPY_SHARE = 0.2
"""Of a batch's tokens (arXiv 2506.01939)."""


def entropy_gates(entropies: Sequence[ArrayLike], *, share: float = ENTROPY_SHARE) -> list[NDArray[np.float32]]:
    """Gate 1 at the `share` of a batch's response tokens with the highest entropy, else 0 (arXiv 2506.01939, eq. 6).

    `entropies` are (T,) in nats for each response of the whole optimizer step; so are the gates, float32. The threshold
    is over all of their tokens together: a response may have no open token. The paper takes the policy that is trained
    at each update; ours the one that sampled, so that a gate stays over the updates of a step (our choice).
    """
    if not entropies:
        return []
    values = [np.asarray(entropy_T, np.float32) for entropy_T in entropies]
    gate_N = highest(np.concatenate(values), share).astype(np.float32)
    return np.split(gate_N, np.cumsum([len(value_T) for value_T in values])[:-1])


def highest(values_N: ArrayLike, share: float) -> NDArray[np.bool_]:
    """True at the `ceil(share N)` highest values, and at those that equal the last of them (our choice); (N,)."""
    values = np.asarray(values_N)
    count = math.ceil(Fraction(str(share)) * len(values))
    if not count:
        return np.zeros(len(values), np.bool_)
    reached: NDArray[np.bool_] = values >= np.sort(values)[-count]
    return reached
