"""At what dimensions the parts are run: the true ones, and tiny ones that try the same code on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from attention import Layer
from generation import Load
from steps import Head, Setting
from training_step_case import Shape
from true_sizes import SIZES, TrueSize

from stages.sections import LoraSection

SHORT = Shape(prompt=1100, grid=(40, 25), shortest=260, longest=300)
LONG = Shape(prompt=1100, grid=(40, 25), shortest=1900, longest=2000)
SHORTEST = Shape(prompt=24, grid=(4, 4), shortest=30, longest=40)
BESIDE_TRL = ("TRL", "ours, gates off", "ours, gates on")
ADAPTERS = LoraSection()
IN_FOUR_BITS = LoraSection(bits=4)


class Scale(NamedTuple):
    settings: Mapping[str, Setting]
    """Of the training step, in the order in which they are run."""
    load: Load
    layer: Layer
    head: Head
    patience: float = 1.0
    """How much longer than on an H100 a part may take."""


def _adapters(maker: TrueSize, shape: Shape, rows: int) -> Setting:
    return Setting(maker, shape, rows, rows, lora=ADAPTERS, sides=BESIDE_TRL)


def _in_four_bits(maker: TrueSize, shape: Shape) -> Setting:
    return Setting(maker, shape, 8, 8, lora=IN_FOUR_BITS, sides=("ours, gates on",))


FROZEN_7B = TrueSize("7b", weights="frozen")
FROZEN_TINY = TrueSize("tiny", 2, weights="frozen")
TRUE = Scale(
    settings={
        "3B, 300": Setting(TrueSize("3b"), SHORT, rows=8, grouped=8),
        "7B, LoRA, 2000": _adapters(FROZEN_7B, LONG, rows=4),
        "3B, 2000": Setting(TrueSize("3b"), LONG, rows=4, grouped=4),
        "7B, LoRA, 300": _adapters(FROZEN_7B, SHORT, rows=8),
        "7B, 4 bits, 300": _in_four_bits(FROZEN_7B, SHORT),
        # As many of its 28 layers as 80 GB have room for with float32 weights and their moments.
        "7B, 10 layers, 300": Setting(TrueSize("7b", 10), SHORT, rows=8, grouped=8, sides=BESIDE_TRL),
    },
    load=Load(TrueSize("7b", weights="bfloat16"), rows=64, new_tokens=300, grid=(40, 25), words=100),
    layer=Layer(prompt=1100, group=8, heads=28, kv_heads=4, width=128, lengths=(300, 1000, 2000, 4000)),
    head=Head(SIZES["3b"].text["hidden_size"], SIZES["3b"].text["vocab_size"], 2400, chunks=(1, 4, 8, 16, 32)),
)
TINY = Scale(
    settings={
        "tiny": Setting(TrueSize("tiny"), SHORTEST, rows=4, grouped=8),
        "tiny, LoRA": _adapters(FROZEN_TINY, SHORTEST, rows=8),
        "tiny, 4 bits": _in_four_bits(FROZEN_TINY, SHORTEST),
    },
    load=Load(TrueSize("tiny", weights="bfloat16"), rows=8, new_tokens=12, grid=(4, 4), words=10),
    layer=Layer(prompt=20, group=2, heads=4, kv_heads=2, width=8, lengths=(6, 12)),
    head=Head(16, 300, 200, chunks=(1, 4)),
    patience=20.0,
)
