"""Which weights of a model that computes in mixed precision rest in float32, and which in the type of its products."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from stages.sections import TrainerSection

Trained: TypeAlias = Literal["all", "text", "none"]
"""Which weights of a checkpoint are trained; `none` under adapters too, which are weights beside them."""

_ROUNDED_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def trained_weights(section: TrainerSection) -> Trained:
    """Which of a checkpoint's weights the recipe trains."""
    if section.lora is not None:
        return "none"
    return "text" if section.freeze_vision else "all"


def is_quantized(section: TrainerSection) -> bool:
    """Whether the recipe trains adapters on layers in four bits."""
    return section.lora is not None and section.lora.bits is not None


def text_weights(model: Any) -> set[Tensor]:
    """Those of the text model and its head: what is left sees the images."""
    return {weight for part in (model.get_decoder(), model.get_output_embeddings()) for weight in part.parameters()}


def rounded_weights(model: Any, trained: Trained) -> frozenset[str]:
    """Names of the weights that rest in autocast's type: it rounds them to that at each use, so nothing is lost.

    These are of linear layers and convolutions. Embeddings, norms and what is tied to them enter sums in float32, and
    what is trained moves by less than a lower type can hold: they are left out.
    """
    kept = {"all": set(model.parameters()), "text": text_weights(model), "none": set[Tensor]()}[trained]
    uses: dict[Tensor, list[tuple[str, bool]]] = defaultdict(list)
    for prefix, module in model.named_modules():
        for name, weight in module.named_parameters(prefix, recurse=False):
            uses[weight].append((name, isinstance(module, _ROUNDED_BY_AUTOCAST)))
    return frozenset(
        name
        for weight, found in uses.items()
        if weight not in kept and all(rounded for _, rounded in found)
        for name, _ in found
    )


@contextmanager
def kept_in_float32(model_class: Any, names: Collection[str]) -> Iterator[None]:
    """Inside, `from_pretrained` of the class loads these weights in float32, whatever type it is asked for."""
    before = model_class._keep_in_fp32_modules_strict
    model_class._keep_in_fp32_modules_strict = {*(before or ()), *names}
    try:
        yield
    finally:
        model_class._keep_in_fp32_modules_strict = before
