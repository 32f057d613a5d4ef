"""Which token is drawn: the one that uniform numbers fall on, which the token's place alone decides.

So a response depends on the seed, its request and its number, and on nothing that is sampled beside it.

Axes: N distributions, V vocabulary, T tokens of a response, B stretches of S tokens, P places on a line.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.engines.protocol import Sampling
from stages.model.codec import Codec
from stages.model.head import sampled_logits

LOGITS_AT_ONCE = 1 << 26
"""Of which probabilities exist at once, in float64."""


class Drawn(NamedTuple):
    ids_N: Tensor
    logprobs_N: Tensor
    """Float32, NaN where the logits hold NaN or infinity."""


def uniforms(seed: int, request: int, sample: int, count: int) -> NDArray[np.float64]:
    """(T, 2) in [0, 1): two of each token of one response, by a counter-based generator."""
    generator = np.random.Philox(key=np.array([seed, request << 32 | sample], np.uint64))
    # 32 bits: a product with a sum of probabilities then never rounds up to the sum.
    return np.ldexp(generator.random_raw(count).view(np.uint32).astype(np.float64), -32).reshape(count, 2)


def draw(logits_NV: Tensor, uniform_N2: Tensor, expected_N: Tensor, codec: Codec, sampling: Sampling) -> Drawn:
    """One token of each sampled distribution, or the likeliest at temperature 0.

    Where `sampling.keep` is set, it is the one of `expected_N` if that is likely enough; none is expected where that is
    negative.
    """
    rows = max(1, LOGITS_AT_ONCE // logits_NV.shape[1])
    arrays = zip(logits_NV.split(rows), uniform_N2.split(rows), expected_N.split(rows), strict=True)
    parts = [_draw(*part, codec, sampling) for part in arrays]
    return parts[0] if len(parts) == 1 else Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _draw(logits_NV: Tensor, uniform_N2: Tensor, expected_N: Tensor, codec: Codec, sampling: Sampling) -> Drawn:
    logprobs_NV = sampled_logits(logits_NV, codec.banned_ids, sampling.temperature or 1.0).log_softmax(-1)
    ids_N = logprobs_NV.argmax(-1) if sampling.temperature == 0 else _fall(logprobs_NV, uniform_N2)
    if sampling.keep is not None:
        likely_N = _of(logprobs_NV, expected_N.clamp(min=0)) >= math.log(sampling.keep)
        ids_N = torch.where(likely_N & (expected_N >= 0), expected_N, ids_N)
    return Drawn(ids_N, _of(logprobs_NV, ids_N))


def _of(logprobs_NV: Tensor, ids_N: Tensor) -> Tensor:
    return logprobs_NV.gather(-1, ids_N[:, None]).squeeze(-1)


def _fall(logprobs_NV: Tensor, uniform_N2: Tensor) -> Tensor:
    """The tokens that the numbers fall on: the first on one of some V ** 0.5 stretches of the vocabulary, the second on
    one of its tokens.

    With one number for all, a rounding in a likely token would move all the unlikely ones behind it.
    """
    count, vocabulary = logprobs_NV.shape
    size = math.isqrt(vocabulary - 1) + 1
    probabilities_NBS = logprobs_NV.new_zeros((count, -(-vocabulary // size), size))
    torch.exp(logprobs_NV, out=probabilities_NBS.flatten(1)[:, :vocabulary])
    stretch_N = _place(probabilities_NBS.sum(-1), uniform_N2[:, 0])
    rows_N = torch.arange(count, device=stretch_N.device)
    return (stretch_N * size + _place(probabilities_NBS[rows_N, stretch_N], uniform_N2[:, 1])).clamp_(
        max=vocabulary - 1
    )


def _place(weights_NP: Tensor, uniform_N: Tensor) -> Tensor:
    """Where a number falls on a line that is divided as the weights say."""
    below_NP = weights_NP.cumsum(-1, dtype=torch.float64)
    found_N1 = torch.searchsorted(below_NP, uniform_N[:, None] * below_NP[:, -1:], right=True)
    # NaN is above every number.
    return found_N1.squeeze(-1).clamp_(max=weights_NP.shape[1] - 1)
