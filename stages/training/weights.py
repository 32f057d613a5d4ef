"""Which weights are trained, and how they become a plain checkpoint again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.model.loading import VisionLanguageModel, load_masters
from stages.model.mixed_precision import is_quantized, text_weights
from stages.runtime import processes
from stages.sections import LoraSection, TrainerSection
from stages.training.parallel import Parallel
from stages.training.quantized import quantize

if TYPE_CHECKING:
    from peft import PeftModel

_QUANTIZATION = ".base_layer.weight."
"""In the names of what goes with a weight in four bits: its scales."""


def prepare_weights(vlm: VisionLanguageModel, section: TrainerSection, seed: int) -> PeftModel | None:
    """Freeze, wrap and compile as the recipe says; the adapters, drawn by `seed`, where it trains those alone."""
    if section.freeze_vision:
        text = text_weights(vlm.model)
        for weight in vlm.model.parameters():
            weight.requires_grad_(weight in text)
    adapters = None
    if section.lora is not None:
        names = _linear_layers(vlm.model)
        if is_quantized(section):
            quantize(vlm.model, names, vlm.autocast_dtype or vlm.model.dtype)
        adapters = _add_adapters(vlm.model, names, section.lora, seed)
    if section.gradient_checkpointing:
        vlm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if section.compile:
        for layer in vlm.model.get_decoder().layers:
            layer.compile(dynamic=True)
    return adapters


def plain_state(vlm: VisionLanguageModel, parallel: Parallel) -> dict[str, Tensor]:
    """The whole weights as a checkpoint names them, adapters added in, on the main process; empty on the others.

    What adapters are added to is read again from the files that it came from, in float32, if it rests rounded or in
    four bits: a round's may move a weight by less than the rounding, and what rounds add up to is to count. Every
    process has to ask.

    Raises:
        ModelError: those files are not there any more.
    """
    main = processes.is_main()
    adapted = _adapted(vlm.model)
    again = (vlm.rounded if adapted else frozenset()) | _quantized(adapted)
    state: dict[str, Tensor] = load_masters(vlm).state_dict() if main and again else {}
    # Tied weights stay one tensor, or they would be saved twice.
    tied: dict[Tensor, list[str]] = defaultdict(list)
    for name, value in vlm.model.state_dict(keep_vars=True).items():
        if ".lora_" not in name and _QUANTIZATION not in name:
            tied[value].append(name.replace(".base_layer.", "."))
    for value, names in tied.items():
        if names[0] not in again:
            whole = parallel.whole_tensor(value).detach()
            state |= dict.fromkeys(names, whole.cpu()) if main else {}
    for name, layer in adapted.items():
        down, up = (parallel.whole_tensor(side["default"].weight).detach() for side in (layer.lora_A, layer.lora_B))
        if main:
            weight = f"{name}.weight"
            state[weight] = state[weight] + (layer.scaling["default"] * (up @ down)).cpu()
    return state


def masters_of(vlm: VisionLanguageModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the whole weights, those that have been trained and that the checkpoint will hold rounded."""
    trained = {name for name, weight in vlm.model.named_parameters() if weight.requires_grad}
    trained |= {f"{name}.weight" for name in _adapted(vlm.model)}
    return {name: state[name] for name in trained & vlm.rounded & state.keys()}


def save_adapters(adapters: PeftModel, parallel: Parallel, folder: Path) -> None:
    """Write them as peft reads them; every process has to ask."""
    tensors = adapters.state_dict(keep_vars=True).items()
    state = {name: parallel.whole_tensor(value).detach() for name, value in tensors if ".lora_" in name}
    if processes.is_main():
        adapters.save_pretrained(str(folder), state_dict=state)


def _adapted(model: Any) -> dict[str, Any]:
    """Layers with an adapter, by name."""
    return {name: part for name, part in model.named_modules() if hasattr(part, "lora_A")}


def _quantized(adapted: Mapping[str, Any]) -> frozenset[str]:
    """Names of the weights in four bits."""
    return frozenset(
        f"{name}.weight" for name, layer in adapted.items() if layer.base_layer.weight.dtype == torch.uint8
    )


def _linear_layers(model: Any) -> list[str]:
    """Names of those of the text model."""
    text = {id(module) for module in model.get_decoder().modules()}
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in text]


def _add_adapters(model: Any, names: list[str], section: LoraSection, seed: int) -> PeftModel:
    """On the layers of these names; all other weights are frozen."""
    from peft import LoraConfig, get_peft_model  # takes as long to import as torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(r=section.rank, lora_alpha=section.alpha, target_modules=names))
