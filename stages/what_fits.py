"""The table of what fits where, from the formula of the dry run and the published sizes of Qwen2.5-VL.

    python -m stages.what_fits stages/recipes/README.md

rewrites what stands between the `<!-- fits -->` marks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig

from stages.estimate import on_device
from stages.model.architecture import empty_model
from stages.model.footprint import Size, size_of
from stages.model.mixed_precision import is_quantized
from stages.recipe import Recipe, recipe_with

COMMANDS = ("sft-repair", "rl-repair", "rollout", "build-masks", "train-policy", "evaluate")
DEVICES = {"24 GB": (24, 1), "48 GB": (48, 1), "80 GB": (80, 1), "8 × 80 GB": (80, 8)}
"""GiB, and how many are cut into shards (FSDP2)."""
FREE = 0.1
"""Share of a device that is left to CUDA's own and to fragments."""
_SETTINGS: dict[str, Any] = {
    "engine": {"name": "transformers", "rows_per_batch": 8, "tokens_per_batch": 2048},
    "rollout": {"max_new_tokens": 1024},
}
_LORA = {"rank": 16, "alpha": 32}
_TRAINED: dict[str, dict[str, Any]] = {
    "all": {},
    "all, AdamW in 8 bits": {"optimizer_bits": 8},
    "LoRA": {"lora": _LORA},
    "LoRA, 4 bits": {"lora": {**_LORA, "bits": 4}},
}


def published(hidden: int, mlp: int, layers: int, heads: tuple[int, int], *, vision_mlp: int = 3420) -> Any:
    """The sizes in a config.json of Qwen2.5-VL; the smallest has tied embeddings, the others a larger vocabulary."""
    tied = hidden == 2048
    text = {
        "vocab_size": 151_936 if tied else 152_064,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "tie_word_embeddings": tied,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": vision_mlp,
        "num_heads": 16,
        "out_hidden_size": hidden,
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


PUBLISHED = {
    "3B": published(2048, 11_008, 36, (16, 2)),
    "7B": published(3584, 18_944, 28, (28, 4)),
    "32B": published(5120, 27_648, 64, (40, 8), vision_mlp=3456),
}


def fits_markdown() -> str:
    """Two lines for each model and what of it is trained, a column for each device."""
    head = ["| Qwen2.5-VL | trained | command | " + " | ".join(DEVICES) + " |", "|---" * (3 + len(DEVICES)) + "|"]
    return "\n".join([*head, *_lines()]) + "\n"


def with_table(text: str) -> str:
    """The text with the table between its marks brought up to date."""
    return re.sub(r"(<!-- fits -->\n).*?(<!-- /fits -->)", rf"\g<1>{fits_markdown()}\g<2>", text, flags=re.DOTALL)


def _lines() -> Iterator[str]:
    for name, config in PUBLISHED.items():
        size = size_of(empty_model(config, trust_remote_code=False))
        for trained, machine in _TRAINED.items():
            trainer = {"trainer": {"tokens_per_micro_batch": 2048, "gradient_checkpointing": True} | machine}
            recipe = recipe_with(_SETTINGS | trainer, Path("what fits"))
            for label, commands in (("`train-policy`", ["train-policy"]), ("any", COMMANDS)):
                cells = (_cell(commands, size, recipe, *device) for device in DEVICES.values())
                yield " | ".join([f"| {name} | {trained} | {label}", *cells]) + " |"


def _cell(commands: Sequence[str], size: Size, recipe: Recipe, gib: int, shards: int) -> str:
    if (is_quantized(recipe.trainer) or recipe.trainer.optimizer_bits) and shards > 1:
        return "–"
    sizes = dict.fromkeys(("policy", "model", "repair_model"), size)
    most = max(on_device(command, recipe, sizes, shards).most for command in commands) / 2**30
    return f"**{most:.1f}**" if most <= gib * (1 - FREE) else f"{most:.1f}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
