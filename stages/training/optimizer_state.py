"""Weights in training and AdamW's state as safetensors, by name: nothing is unpickled on the way back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.errors import ModelError
from stages.runtime import processes
from stages.training.parallel import Parallel


def save_trained(path: Path, module: nn.Module, parallel: Parallel) -> None:
    """Write what training changes of a module, as it is held; every process has to ask."""
    whole = ((name, parallel.whole_tensor(tensor).detach()) for name, tensor in _trained(module).items())
    _save_on_main(path, whole, {})


def load_trained(path: Path, module: nn.Module, parallel: Parallel) -> None:
    """Put back what `save_trained` wrote of the same module."""
    with safe_open(path, framework="pt") as file:
        for name, tensor in _trained(module).items():
            parallel.set_tensor(tensor, file.get_tensor(name))


def _trained(module: nn.Module) -> dict[str, Tensor]:
    weights = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    return weights | dict(module.named_buffers())


def save_optimizer_state(path: Path, model: nn.Module, parallel: Parallel, steps_done: int) -> None:
    """Write every parameter's state and the number of optimizer steps done."""
    whole = (
        (f"{name}/{key}", value)
        for name, parameter in model.named_parameters()
        for key, value in parallel.optimizer_state(parameter).items()
    )
    _save_on_main(path, whole, {"steps_done": str(steps_done)})


def _save_on_main(path: Path, whole: Iterable[tuple[str, Tensor]], metadata: dict[str, str]) -> None:
    """Every process makes the whole tensors, one keeps them: eight copies of AdamW's state would fill a host."""
    main = processes.is_main()
    kept = {name: tensor.cpu().contiguous() for name, tensor in whole if main}
    if main:
        save_file(kept, path, metadata=metadata)


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
