"""Float32 weights that a checkpoint holds rounded, in the optimizer's state beside it: training goes on from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from stages.errors import ModelError

MASTER = "master"
"""Entry of a weight in the optimizer's state, beside AdamW's."""


def master_entries(masters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names that they have in the optimizer's state."""
    return ((f"{name}/{MASTER}", weight) for name, weight in masters.items())


def entries_of(file: Any) -> Iterator[tuple[str, str, str]]:
    """Each key of an open optimizer's state, with the weight that it is of and the entry that it is."""
    for key in file.keys():  # noqa: SIM118, a safetensors file is not iterable
        name, _, entry = key.rpartition("/")
        yield key, name, entry


@torch.no_grad()
def take_masters(model: Any, path: Path) -> None:
    """Put the weights of an optimizer's state in the place of a model's own, which must be whole.

    Raises:
        ModelError: the state is of another model.
    """
    weights = dict(model.named_parameters())
    with safe_open(path, framework="pt") as file:
        for key, name, entry in entries_of(file):
            if entry != MASTER:
                continue
            if name not in weights or list(weights[name].shape) != file.get_slice(key).get_shape():
                raise misfit(path, name)
            weights[name].copy_(file.get_tensor(key))


def misfit(path: Path, name: str) -> ModelError:
    """The error for a tensor of an optimizer's state that the model has not, or not in this shape."""
    return ModelError(
        f"{path}: {name} does not fit the model beside it, or trainer.optimizer_bits; delete the file to start afresh"
    )
