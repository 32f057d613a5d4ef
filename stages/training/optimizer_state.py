"""Weights in training and AdamW's state as safetensors, by name: nothing is unpickled on the way back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.model.masters import MASTER, entries_of, master_entries, misfit
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


def save_optimizer_state(
    path: Path,
    model: nn.Module,
    parallel: Parallel,
    steps_done: int,
    masters: Mapping[str, Tensor] | None = None,
) -> None:
    """Write every parameter's state and the number of optimizer steps done, and the main process's `masters`."""
    states = (
        (f"{name}/{key}", value)
        for name, parameter in model.named_parameters()
        for key, value in parallel.optimizer_state(parameter).items()
    )
    _save_on_main(path, chain(master_entries(masters or {}), states), {"steps_done": str(steps_done)})


def save_masters(path: Path, masters: Mapping[str, Tensor]) -> None:
    """Write them alone, on the main process: adapters' own state ends with them."""
    _save_on_main(path, master_entries(masters), {})


def _save_on_main(path: Path, whole: Iterable[tuple[str, Tensor]], metadata: dict[str, str]) -> None:
    """Every process makes the whole tensors, one keeps them: eight copies of AdamW's state would fill a host."""
    main = processes.is_main()
    kept = {name: tensor.cpu().contiguous() for name, tensor in whole if main}
    if main:
        save_file(kept, path, metadata=metadata)


def load_optimizer_state(path: Path, model: nn.Module, parallel: Parallel) -> int:
    """Restore AdamW's state as `save_optimizer_state` wrote it; return the number of optimizer steps done.

    Raises:
        ModelError: the state is of another model.
    """
    parameters = dict(model.named_parameters())
    with safe_open(path, framework="pt") as file:
        for key, name, entry in entries_of(file):
            if entry == MASTER:
                continue
            tensor = file.get_tensor(key)
            if name not in parameters or not parallel.takes(parameters[name], entry, tensor):
                raise misfit(path, name)
            parallel.set_optimizer_state(parameters[name], entry, tensor)
        return int(file.metadata()["steps_done"])
