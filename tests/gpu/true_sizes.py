"""Random Qwen2.5-VL models at the true dimensions of the published ones, and a tiny one, made on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from measured import device
from tiny_vlm import TEXT, VISION, random_model, tiny_processor
from training_step_case import SEED

from stages.model import footprint
from stages.model.loading import VisionLanguageModel, wrap_model
from stages.model.mixed_precision import rounded_weights
from stages.model.window_attention import use_window_attention


class Size(NamedTuple):
    """Keyword arguments of transformers' configurations."""

    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool


def _size(hidden: int, mlp: int, layers: int, heads: tuple[int, int], vocabulary: int, *, tied: bool) -> Size:
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": 128_000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": None,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Size(text, vision, tied)


SIZES = {
    "3b": _size(2048, 11_008, 36, (16, 2), 151_936, tied=True),
    "7b": _size(3584, 18_944, 28, (28, 4), 152_064, tied=False),
    "tiny": Size(TEXT, VISION, tied=True),
}
"""The config.json of Qwen2.5-VL-3B-Instruct and -7B-Instruct, and the CPU benchmark's model."""


@dataclass(frozen=True)
class TrueSize:
    """A `Maker` of the benchmark, of all layers or the first so many."""

    size: str
    layers: int | None = None
    weights: Literal["trained", "frozen", "bfloat16"] = "trained"
    """In float32, computing in bfloat16; the same, but what that rounds rests rounded, as beneath adapters; all in
    bfloat16, as for sampling."""
    device: str = field(default_factory=device)

    @property
    def bfloat16(self) -> bool:
        return True

    def model(self) -> Any:
        text, vision, tied = SIZES[self.size]
        layers = text["num_hidden_layers"] if self.layers is None else self.layers
        dtype = torch.float32 if self.weights == "trained" else torch.bfloat16
        with torch.device(self.device), _default_dtype(dtype):
            model = random_model(text | {"num_hidden_layers": layers}, vision, SEED, tied=tied)
        if self.weights == "frozen":
            rounded = rounded_weights(model, "none")
            for name, weight in model.named_parameters():
                weight.data = weight.data if name in rounded else weight.data.float()
        # On every side: where flash-attention is installed, transformers' vision tower has something like it.
        use_window_attention(model)
        return model

    def processor(self) -> Any:
        return tiny_processor(SIZES[self.size].text["vocab_size"])

    def vlm(self) -> VisionLanguageModel:
        return wrap_model(self.model(), self.processor(), None if self.weights == "bfloat16" else torch.bfloat16)

    def footprint(self) -> footprint.Size:
        """What the dry run's estimate takes of it; nothing is made."""
        return footprint.size_of(replace(self, device="meta").model())


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
