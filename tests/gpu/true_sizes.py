"""Random Qwen2.5-VL models at the true dimensions of the published ones, made on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tiny_vlm import random_model, tiny_processor
from training_step_case import SEED

from stages.model.loading import VisionLanguageModel, wrap_model
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
}
"""The config.json of Qwen2.5-VL-3B-Instruct and -7B-Instruct."""


@dataclass(frozen=True)
class TrueSize:
    """A `Maker` of the benchmark: float32 weights that compute in bfloat16, or weights that rest in `dtype`."""

    size: str
    layers: int
    dtype: torch.dtype = torch.float32
    device: str = "cuda"

    @property
    def bfloat16(self) -> bool:
        return True

    def model(self) -> Any:
        text, vision, tied = SIZES[self.size]
        with torch.device(self.device), _default_dtype(self.dtype):
            model = random_model(text | {"num_hidden_layers": self.layers}, vision, SEED, tied=tied)
        # On every side: where flash-attention is installed, transformers' vision tower has something like it.
        use_window_attention(model)
        return model

    def processor(self) -> Any:
        return tiny_processor(SIZES[self.size].text["vocab_size"])

    def vlm(self) -> VisionLanguageModel:
        master = self.dtype == torch.float32
        return wrap_model(self.model(), self.processor(), torch.bfloat16 if master else None)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
