"""AdamW's state as safetensors, by parameter name: nothing is unpickled on the way back."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from stages import processes
from stages.errors import ModelError
from stages.training.parallel import like, whole_tensor


def save_optimizer_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps_done: int) -> None:
    """Write every parameter's state and the number of optimizer steps done."""
    tensors = {
        f"{name}/{key}": whole_tensor(value).cpu()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    if processes.is_main():
        save_file(tensors, path, metadata={"steps_done": str(steps_done)})


def load_optimizer_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_optimizer_state` wrote; return the number of optimizer steps done.

    Raises:
        ModelError: the state is of another model.
    """
    parameters = dict(model.named_parameters())
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118, a safetensors file is not iterable
            name, _, entry = key.rpartition("/")
            tensor = file.get_tensor(key)
            if name not in parameters or (tensor.ndim and tensor.shape != parameters[name].shape):
                raise ModelError(f"{path}: {name} does not fit the model beside it; delete the file to start afresh")
            optimizer.state[parameters[name]][entry] = like(tensor, parameters[name]) if tensor.ndim else tensor
        return int(file.metadata()["steps_done"])
