"""Rotary positions of what comes after a video."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

_TYPES = ("qwen2_vl", "qwen2_5_vl")
"""Later ones have a timestamp before each frame instead, and their positions need nothing."""
_VIDEO = 2
"""A video's tokens in `mm_token_type_ids`."""


def continue_behind_videos(model: Any) -> None:
    """Let what comes after a video of Qwen2-VL and Qwen2.5-VL stand one behind the video's largest position on any axis
    (Qwen2-VL, sec. 2.1).

    Checkpoints were trained so, and vLLM counts so. transformers 5 leaves the time axis out of that maximum: the text
    after a video would stand at the times of its later frames.
    """
    if model.config.model_type in _TYPES:
        model.base_model.get_rope_index = partial(_rope_index, model.base_model.get_rope_index)


def _rope_index(
    own: Callable[..., tuple[Tensor, Tensor]],
    input_ids: Tensor,
    mm_token_type_ids: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The model's own positions (3, B, S) with those after a video moved; and (B, 1), by how much a row's next
    position is more than its length."""
    positions_ABS, beyond_B1 = own(
        input_ids, mm_token_type_ids=mm_token_type_ids, attention_mask=attention_mask, **kwargs
    )
    mask_BS = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    for row in (mm_token_type_ids == _VIDEO).any(-1).nonzero()[:, 0].tolist():
        kept_S = mask_BS[row].bool()
        positions_AL = _moved(positions_ABS[:, row, kept_S], mm_token_type_ids[row, kept_S].tolist())
        positions_ABS[:, row, kept_S] = positions_AL
        beyond_B1[row] = positions_AL.max() + 1 - positions_AL.shape[1]
    return positions_ABS, beyond_B1


def _moved(positions_AL: Tensor, types: list[int]) -> Tensor:
    for kind, members in groupby(range(len(types)), key=types.__getitem__):
        slots = list(members)
        behind = slots[-1] + 1
        if kind == _VIDEO and behind < len(types):
            expected = positions_AL[:, slots].max() + 1
            positions_AL[:, behind:] += (expected - positions_AL[0, behind]).clamp(min=0)
    return positions_AL
