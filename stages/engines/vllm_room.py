"""What vLLM's share of a device leaves for keys and values, by arithmetic: its own profile at start decides."""

from __future__ import annotations

import logging
from typing import NamedTuple

from stages.errors import RecipeError
from stages.model.footprint import BYTES, Size
from stages.sections import VllmSection

logger = logging.getLogger(__name__)

GIB = 2**30
_LARGE_DEVICE = 70 * GIB
_TOKENS_AT_ONCE = {True: 16_384, False: 8192}
"""Of a pass of vLLM 0.32, where nothing else is asked for, on a large device and on others."""
_ROWS_AT_ONCE = {True: 1024, False: 256}
"""Whose logits it makes at once."""


class Room(NamedTuple):
    """Bytes of one device, of the engine that has a share of it."""

    share: int
    weights: int
    work: int
    """A pass of as many tokens as vLLM reads at once, and the logits of as many rows."""
    sequence: int
    """Keys and values of one sequence of `tokens` tokens, the longest that it takes."""
    tokens: int

    @property
    def cache(self) -> int:
        """What is left for keys and values."""
        return max(0, self.share - self.weights - self.work)

    @property
    def sequences(self) -> float:
        """Of the longest, how many fit at once; a hundred of a hundredth of the length take the same."""
        return self.cache / self.sequence


def room(size: Size, vllm: VllmSection, dtype: str, device: int) -> Room:
    """Of an engine with a model of this size, on a device of so many bytes."""
    parts, text, large = vllm.tensor_parallel_size, size.text, device >= _LARGE_DEVICE
    tokens = vllm.max_model_len or size.longest
    per_token = BYTES[dtype] * (3 * text.mlp // parts + 4 * text.hidden)
    logits = _ROWS_AT_ONCE[large] * size.vocabulary * (BYTES[dtype] + 2 * BYTES["float32"])
    return Room(
        share=int(vllm.gpu_memory_utilization * device),
        weights=size.at_rest(dtype, None) // parts,
        work=_TOKENS_AT_ONCE[large] * per_token + logits,
        sequence=size.keys_and_values(dtype, 1, tokens) // parts,
        tokens=tokens,
    )


def check_room(name: str, found: Room) -> None:
    """Tell where an engine will hardly start, its longest sequence finding no room beside a pass.

    Raises:
        RecipeError: it cannot start, as weights and that sequence alone are more than its share.
    """
    if found.sequences >= 1:
        return
    message = (
        f"{name}: vLLM's share of a device is {found.share / GIB:.1f} GiB, its weights take {found.weights / GIB:.1f}, "
        f"a pass about {found.work / GIB:.1f} and one sequence of {found.tokens} tokens {found.sequence / GIB:.1f}; "
        "raise engine.vllm.gpu_memory_utilization (gpu_memory_utilization_alone), lower engine.vllm.max_model_len, or "
        "set engine.name=transformers"
    )
    if found.weights + found.sequence > found.share:
        raise RecipeError(message)
    logger.warning("%s", message)
