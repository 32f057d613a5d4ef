"""What bitsandbytes keeps in fewer bits: frozen layers in four (NF4, whose scales are quantized too: QLoRA, arXiv
2305.14314), AdamW's moments in eight (arXiv 2110.02861)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from stages.errors import RecipeError
from stages.model.mixed_precision import is_quantized
from stages.runtime import processes
from stages.sections import TrainerSection

BLOCK = 64
"""Weights that share a scale."""


def check_quantized(section: TrainerSection) -> None:
    """Raises RecipeError where the recipe wants fewer bits and they cannot be had."""
    wanted = {"trainer.lora.bits is 4": is_quantized(section), "trainer.optimizer_bits is 8": section.optimizer_bits}
    for field, is_wanted in wanted.items():
        if is_wanted and find_spec("bitsandbytes") is None:
            raise RecipeError(f"{field}; pip install '.[quantized]'")
    if is_quantized(section) and processes.count() > 1:
        raise RecipeError("trainer.lora.bits is 4, which takes one process; leave the launcher out, or set it to null")
    if section.optimizer_bits is not None and processes.will_shard():
        raise RecipeError(
            "trainer.optimizer_bits is 8, which takes whole copies, but the launcher cuts AdamW's moments into shards; "
            "set it to null, or launch with ddp.yaml"
        )


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


def adamw_in_eight_bits() -> type[torch.optim.Optimizer]:
    """AdamW whose moments rest in the bits of a group's `optim_bits`: eight, with a scale for every 256, or 32.

    Those of weights of fewer than 4,096 elements are float32 in any case.
    """
    from bitsandbytes.optim.adamw import AdamW8bit

    class AdamW(AdamW8bit):
        def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
            """bitsandbytes asks a register that all optimizers of the process share, by a weight's place or address."""
            config: dict[str, Any] = super().get_config(gindex, pindex, group)  # type: ignore[no-untyped-call]
            return config | {"optim_bits": group["optim_bits"]}

    return AdamW


def in_eight_bits(groups: Sequence[Mapping[str, Any]], embeddings: Tensor) -> list[dict[str, Any]]:
    """The parameter groups, each cut in two: embeddings, of which a step moves few rows, keep moments of 32 bits."""
    return [
        {
            **group,
            "params": [weight for weight in group["params"] if (weight is embeddings) is kept],
            "optim_bits": bits,
        }
        for group in groups
        for kept, bits in ((False, 8), (True, 32))
    ]
