"""Token credit of other papers on the rollout group. Axes: T tokens of one response, N tokens of several."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

ENTROPY_SHARE = 0.2
"""Of a batch's tokens (arXiv 2506.01939)."""
PERCEPTION_SHARE = 0.4
"""Of a response's tokens (arXiv 2510.09285)."""


def entropy_gates(entropies: Sequence[ArrayLike], *, share: float = ENTROPY_SHARE) -> list[NDArray[np.float32]]:
    """Gate 1 at the `share` of a batch's response tokens with the highest entropy, else 0 (arXiv 2506.01939).

    `entropies` are (T,) in nats for each response of the whole optimizer step; so are the gates, float32. The threshold
    is over all of their tokens together: a response may have no open token. The paper takes the policy that is trained
    at each update; ours the one that sampled, so that a gate stays over the updates of a step (our choice).
    """
    if not entropies:
        return []
    values = [np.asarray(entropy_T, np.float32) for entropy_T in entropies]
    gate_N = highest(np.concatenate(values), share).astype(np.float32)
    return np.split(gate_N, np.cumsum([len(value_T) for value_T in values])[:-1])


def perception_gate(image_kls_T: ArrayLike, *, share: float = PERCEPTION_SHARE) -> NDArray[np.float32]:
    """Gate 1 at the `share` of a response's tokens that depend on the image most, else 0: VPPO's token filter.

    `image_kls_T` is KL(with image || without), in nats, of the policy's distributions before each token (arXiv
    2510.09285); the gate is (T,), float32. Ours differs thrice (our choice): the KL is exact, where the
    published code estimates it from the sampled token; the image is blank, where it loses half of its patches; and
    trajectories are not weighed by their mean KL beside it. A response to no image, whose KL is 0, is open throughout.
    """
    return highest(image_kls_T, share).astype(np.float32)


def answer_gap_advantages(
    advantage: float, gaps_T: ArrayLike, *, weight: float = 0.5, clip: float = 0.2
) -> NDArray[np.float64]:
    """`A ((1 - weight) + weight clip(exp(sign(A) gap), 1 - clip, 1 + clip))` for each token (RLSD, arXiv 2604.03128).

    `gaps_T` is teacher's less student's log-prob of each token in nats, the teacher being the policy that was shown the
    reference answer; (T,), as the result is. `weight` is the paper's λ: constant, as in ms-swift, where others let it
    fall to 0 over the first 50 steps; teacher and student are the policy that sampled, all through a step (our choice).
    Numbers alone come in, so no gradient goes through the weights.
    """
    weights_T = np.exp(np.sign(advantage) * np.asarray(gaps_T, np.float64)).clip(1 - clip, 1 + clip)
    advantages_T: NDArray[np.float64] = advantage * ((1 - weight) + weight * weights_T)
    return advantages_T


def highest(values_N: ArrayLike, share: float) -> NDArray[np.bool_]:
    """True at the `ceil(share N)` highest values, and at those that equal the last of them (our choice); (N,)."""
    values = np.asarray(values_N)
    count = math.ceil(Fraction(str(share)) * len(values))
    if not count:
        return np.zeros(len(values), np.bool_)
    reached: NDArray[np.bool_] = values >= np.sort(values)[-count]
    return reached
