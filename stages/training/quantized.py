"""Frozen layers in four bits: NF4, whose scales are quantized too (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch

from stages.errors import RecipeError
from stages.model.mixed_precision import is_quantized
from stages.runtime import processes
from stages.sections import TrainerSection

BLOCK = 64
"""Weights that share a scale."""


def check_quantized(section: TrainerSection) -> None:
    """Raises RecipeError where the recipe wants four bits and they cannot be had."""
    if not is_quantized(section):
        return
    if find_spec("bitsandbytes") is None:
        raise RecipeError("trainer.lora.bits is 4; pip install '.[quantized]'")
    if processes.count() > 1:
        raise RecipeError("trainer.lora.bits is 4, which takes one process; leave the launcher out, or set it to null")


def quantize(model: Any, names: Iterable[str], dtype: torch.dtype) -> None:
    """Put layers in four bits in the place of these linear ones, which compute in `dtype`; move all to the device.

    Each is quantized there: the device never holds all of them as they were. One whose rows are no whole blocks stays
    as it is: bitsandbytes 0.50 reads it back wrongly on a CPU.
    """
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    device = processes.device()
    for name in names:
        whole = model.get_submodule(name)
        if whole.in_features % BLOCK:
            continue
        layer = Linear4bit(
            whole.in_features, whole.out_features, whole.bias is not None, dtype, quant_type="nf4", device="meta"
        )
        layer.weight = Params4bit(whole.weight.data, requires_grad=False, quant_type="nf4", module=layer)
        layer.bias = whole.bias
        model.set_submodule(name, layer.to(device))
    model.to(device)
