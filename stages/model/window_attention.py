"""Attention of a vision tower within its images and windows: those of one length at once.

transformers' own runs one after the other: 63 windows a layer for an image of 1,000 tokens under Qwen2.5-VL, each a
kernel of a few microseconds that a GPU waits for.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# transformers hands the boundaries of images and windows to an attention whose name says flash.
WINDOW_ATTENTION = "difference_feedback_flash_windows"


class _Windows(NamedTuple):
    """All windows of one length, and where their tokens stand, window after window."""

    length: int
    where_N: Tensor


_CUT: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Lists of `_Windows` by bounds; a tower hands the same ones to all its layers."""


def window_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query, key and value (1, heads, N, D) -> (1, N, heads, D).

    `cu_seq_lens_q` are the bounds (W + 1,) of the windows that the N tokens are cut into; without it, one window.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    # Under autocast the rotary embedding leaves float32; attention itself computes in the layers' type.
    query_NHD, key_NHD, value_NHD = (whole[0].transpose(0, 1).to(value.dtype) for whole in (query, key, value))
    output_NHD = torch.empty_like(value_NHD)
    for length, where_N in _windows(cu_seq_lens_q):
        query_WHLD, key_WHLD, value_WHLD = (
            whole[where_N].unflatten(0, (-1, length)).transpose(1, 2) for whole in (query_NHD, key_NHD, value_NHD)
        )
        attended_WHLD = scaled_dot_product_attention(query_WHLD, key_WHLD, value_WHLD, scale=scaling)
        output_NHD = output_NHD.index_copy(0, where_N, attended_WHLD.transpose(1, 2).flatten(0, 1))
    return output_NHD[None], None


def _windows(bounds_W: Tensor) -> list[_Windows]:
    """Worked out for the first layer: to read the bounds waits for the device, and so does each copy back to it."""
    if bounds_W not in _CUT:
        starts: dict[int, list[int]] = defaultdict(list)
        for start, stop in pairwise(bounds_W.tolist()):
            starts[stop - start].append(start)
        cut = {length: torch.tensor(firsts)[:, None] + torch.arange(length) for length, firsts in starts.items()}
        _CUT[bounds_W] = [
            _Windows(n, where_WL.flatten().to(bounds_W.device, non_blocking=True)) for n, where_WL in cut.items()
        ]
    return _CUT[bounds_W]


def use_window_attention(model: Any) -> None:
    """Let the vision towers that cut their tokens into windows attend to all windows of one length at once."""
    for name in model.config.sub_configs:
        if (config := getattr(model.config, name)) is None:  # Gemma 4's for sound
            continue
        towers = [part for part in model.modules() if getattr(part, "config", None) is config]
        if config._attn_implementation == "sdpa" and any(map(_has_windows, towers)):
            model.set_attn_implementation({name: WINDOW_ATTENTION})


def _has_windows(module: Any) -> bool:
    return "cu_seqlens" in inspect.signature(module.forward).parameters


AttentionInterface.register(WINDOW_ATTENTION, window_attention)
AttentionMaskInterface.register(WINDOW_ATTENTION, sdpa_mask)
