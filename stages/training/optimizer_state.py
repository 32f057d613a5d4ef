"""AdamW's state as safetensors, by parameter name: nothing is unpickled on the way back."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from stages import processes
from stages.errors import ModelError
from stages.training.parallel import Parallel


def save_optimizer_state(path: Path, model: nn.Module, parallel: Parallel, steps_done: int) -> None:
    """Write every parameter's state and the number of optimizer steps done."""
    tensors = {
        f"{name}/{key}": value.cpu()
        for name, parameter in model.named_parameters()
        for key, value in parallel.optimizer_state(parameter).items()
    }
    if processes.is_main():
        save_file(tensors, path, metadata={"steps_done": str(steps_done)})


def load_optimizer_state(path: Path, model: nn.Module, parallel: Parallel) -> int:
    """Restore what `save_optimizer_state` wrote; return the number of optimizer steps done.

    Raises:
        ModelError: the state is of another model.
    """
    parameters = dict(model.named_parameters())
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118, a safetensors file is not iterable
            name, _, entry = key.rpartition("/")
            tensor = file.get_tensor(key)
            if name not in parameters or (tensor.ndim and tensor.shape != parallel.shape(parameters[name])):
                raise ModelError(f"{path}: {name} does not fit the model beside it; delete the file to start afresh")
            parallel.set_optimizer_state(parameters[name], entry, tensor)
        return int(file.metadata()["steps_done"])
