"""Which token is drawn: the one that a uniform number falls on, a number that the token's place alone decides.

So a response depends on the seed, its request and its number, and on nothing that is sampled beside it.

Axes: N distributions, V vocabulary, T tokens of a response.
"""

from __future__ import annotations

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
    """(T,) in [0, 1): of the tokens of one response, by a counter-based generator."""
    generator = np.random.Philox(key=np.array([seed, request << 32 | sample], np.uint64))
    # 48 bits: a product with a sum of probabilities then never rounds up to the sum.
    return np.ldexp((generator.random_raw(count) >> np.uint64(16)).astype(np.float64), -48)


def draw(logits_NV: Tensor, uniform_N: Tensor, codec: Codec, sampling: Sampling) -> Drawn:
    """One token of each sampled distribution, the likeliest at temperature 0."""
    rows = max(1, LOGITS_AT_ONCE // logits_NV.shape[1])
    parts = [
        _draw(logits_PV, uniform_P, codec, sampling)
        for logits_PV, uniform_P in zip(logits_NV.split(rows), uniform_N.split(rows), strict=True)
    ]
    return parts[0] if len(parts) == 1 else Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _draw(logits_NV: Tensor, uniform_N: Tensor, codec: Codec, sampling: Sampling) -> Drawn:
    logprobs_NV = sampled_logits(logits_NV, codec.banned_ids, sampling.temperature or 1.0).log_softmax(-1)
    if sampling.temperature == 0:
        ids_N = logprobs_NV.argmax(-1)
    else:
        below_NV = logprobs_NV.exp().cumsum(-1, dtype=torch.float64)
        found_N1 = torch.searchsorted(below_NV, uniform_N[:, None] * below_NV[:, -1:], right=True)
        # NaN is above every number.
        ids_N = found_N1.squeeze(-1).clamp_(max=logits_NV.shape[1] - 1)
    return Drawn(ids_N, logprobs_NV.gather(-1, ids_N[:, None]).squeeze(-1))
