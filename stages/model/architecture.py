"""The tensors of a checkpoint against those of the model that its configuration makes, before they are read.

`transformers` draws what it does not find at random and goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.utils.logging import get_verbosity, set_verbosity

from stages.artifacts.weights import INDEX, WEIGHTS
from stages.errors import ModelError

_REMEDY = "give the config.json that these weights were saved with, or copy the whole checkpoint again"


def check_tensors(path: Path | str, config: Any, trust_remote_code: bool) -> None:
    """Refuse a configuration that makes no model, or another one than the weights beside it are of.

    Loads the checkpoint without its numbers: names, converted as transformers does, and shapes. Those of a hub name are
    not looked at.

    Raises:
        ModelError: names the first tensor.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{path}: its config.json has a quantization_config; give the model before it was quantized")
    local = Path(path).is_dir()
    try:
        with _quiet(), torch.device("meta"):
            model_class = type(empty_model(config, trust_remote_code))
            info = _load_without_numbers(model_class, config, _shapes(Path(path))) if local else {}
    except Exception as error:  # whatever the values make its classes raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: its config.json makes no model of its weights ({reason}); {_REMEDY}") from error
    check_loaded(path, info)


def empty_model(config: Any, trust_remote_code: bool) -> Any:
    """The transformers model of a configuration without numbers, all of it on the meta device."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)


def check_loaded(path: Path | str, info: Mapping[str, Any]) -> None:
    """Refuse what `from_pretrained` says that it did not find, or found in another shape.

    Raises:
        ModelError: names the first tensor.
    """
    if missing := sorted(info.get("missing_keys", ())):
        raise ModelError(
            f"{path}: its weights have no tensor {missing[0]}{_others(missing)}, which its config.json wants; {_REMEDY}"
        )
    if mismatched := sorted(info.get("mismatched_keys", ())):
        name, found, wanted = mismatched[0]
        raise ModelError(
            f"{path}: tensor {name}{_others(mismatched)} is {list(found)}, its config.json wants {list(wanted)}; "
            f"{_REMEDY}"
        )


def check_finite(path: Path | str, model: nn.Module) -> None:
    """Refuse weights that are not numbers, or without end; those that are not in memory are not looked at.

    Raises:
        ModelError: names the first tensor.
    """
    for name, weight in model.named_parameters():
        # 0.04 s for 100 million weights; `isfinite` takes 1.4 s, and several times the memory of an embedding.
        if weight.numel() and not weight.is_meta and not all(bound.isfinite() for bound in weight.detach().aminmax()):
            raise ModelError(f"{path}: tensor {name} holds NaN or infinity; give a checkpoint from before it diverged")


def _others(found: list[Any]) -> str:
    return f" and {len(found) - 1} others" if len(found) > 1 else ""


def _load_without_numbers(model_class: Any, config: Any, shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    _, info = model_class.from_pretrained(
        None,
        config=config,
        state_dict=state,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return dict(info)


def _shapes(folder: Path) -> dict[str, list[int]]:
    """By tensor, of the files that `from_pretrained` reads."""
    files = {WEIGHTS}
    if not (folder / WEIGHTS).is_file():
        files = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    shapes: dict[str, list[int]] = {}
    for file in sorted(files):
        with safe_open(folder / file, framework="np") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118, no mapping
    return shapes


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the table that transformers writes of what is missing."""
    verbosity = get_verbosity()
    set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        set_verbosity(verbosity)
