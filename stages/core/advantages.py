"""Group-relative advantages and reward shaping. Axes: G members of one group, B sequences."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STD_FLOOR = 1e-4


def group_advantages(
    rewards_G: Sequence[float] | NDArray[Any] | Tensor, *, scale: Literal["std", "none"] = "std"
) -> Tensor:
    """`(R - mean) / (std + 1e-4)` over one group, unbiased std; float32 of shape (G,), on the CPU.

    `none` leaves `R - mean` (Dr. GRPO). Equal rewards, and a group of one, get exactly 0. Gates multiply the result,
    never the rewards. Raises ValueError on a null or non-finite reward, on a nested group, or on an unknown scale.
    """
    if scale not in ("std", "none"):
        raise ValueError(f"scale is {scale!r}; use std or none")
    # In float32, equal rewards of 0.9 miss their mean by a rounding error that the small floor would magnify.
    rewards = torch.tensor(np.asarray(rewards_G, np.float64))
    if rewards.ndim != 1:
        raise ValueError(f"rewards_G has shape {tuple(rewards.shape)}; pass one group at a time")
    if not rewards.isfinite().all():
        place = int(rewards.isfinite().int().argmin())
        raise ValueError(f"rewards_G[{place}] is {rewards[place]}; leave unscored responses out of the group")
    if (rewards == rewards[:1]).all():  # their mean, rounded, may be another number
        return torch.zeros(len(rewards))
    centred = rewards - rewards.mean()
    if scale == "std":
        centred = centred / (rewards.std(correction=1) + STD_FLOOR)
    return centred.float()


def overlong_penalty(lengths_B: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13), float32 of shape (B,), in [-1, 0].

    0 up to `max_length - buffer` tokens, then linear down to -1 at `max_length`. It enters the advantage
    alone: correctness is judged on the task reward. Raises ValueError unless `0 < buffer <= max_length`.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer is {buffer} tokens; it must lie in 1..max_length ({max_length})")
    return ((max_length - buffer - lengths_B.float()) / buffer).clamp(-1, 0)
