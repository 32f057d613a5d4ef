"""One optimizer step over the processes of `accelerate launch`: copies of the model, or one cut into shards.

Every process holds all rows of a step and takes its share of the micro-batches; losses have the whole step's
denominators, so gradients add up to those of one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from stages.runtime import processes

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch's AdamW keeps of a parameter, beside its count of steps."""


class Parallel(Protocol):
    """How the processes of a run share a model's training."""

    module: nn.Module
    """The wrapped model, which is called in place of the model itself."""
    optimizer: torch.optim.Optimizer
    in_step: bool
    """Whether every process must run as many passes as the others, each through every part of the model.

    So it is where a pass gathers weights from all processes: one that skipped a part would keep the others waiting.
    """
    steps_apart: bool
    """Whether `optimizer.step` is a call of its own, so that a gradient that is not finite after `clip` is left out."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one pass; `last` tells that it is this process's last pass of the optimizer step."""
        ...

    def frozen(self, module: nn.Module) -> nn.Module:
        """Wrap a second model, which is not trained, as the trained one is wrapped: copied or cut into shards."""
        ...

    def clip(self, max_norm: float) -> Tensor:
        """Finish the step's gradient; return its norm, and scale it down to `max_norm`."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Hold all weights on every process while the block runs, so that each can run the model on its own."""
        ...

    def whole_tensor(self, tensor: Tensor) -> Tensor:
        """Gather a weight or buffer of the model from all processes; every process has to call this."""
        ...

    def set_tensor(self, tensor: Tensor, value: Tensor) -> None:
        """Put back what `whole_tensor` gave of a weight that is trained, or of a buffer."""
        ...

    def optimizer_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The whole state that the optimizer keeps of a parameter, if any; every process has to ask."""
        ...

    def takes(self, parameter: Tensor, entry: str, value: Tensor) -> bool:
        """Whether it is an entry of what `optimizer_state` gives of a parameter of this shape."""
        ...

    def set_optimizer_state(self, parameter: Tensor, entry: str, value: Tensor) -> None:
        """Put back one entry of what `optimizer_state` gave."""
        ...


class _Torch:
    """What torch's own optimizer does alike for whole tensors and for those cut into shards."""

    optimizer: torch.optim.Optimizer
    steps_apart = True

    def whole_tensor(self, tensor: Tensor) -> Tensor:
        return _whole(tensor)

    @torch.no_grad()
    def set_tensor(self, tensor: Tensor, value: Tensor) -> None:
        tensor.copy_(_like(value, tensor))

    def optimizer_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {entry: _whole(value) for entry, value in self.optimizer.state[parameter].items()}

    def takes(self, parameter: Tensor, entry: str, value: Tensor) -> bool:
        return entry in MOMENTS and value.shape == parameter.shape if value.ndim else True

    def set_optimizer_state(self, parameter: Tensor, entry: str, value: Tensor) -> None:
        self.optimizer.state[parameter][entry] = _like(value, parameter) if value.ndim else value


class Copies(_Torch):
    """A whole model in each process, or the one process; gradients are summed once a step."""

    in_step = False

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002
        loss.backward()

    def frozen(self, module: nn.Module) -> nn.Module:
        return module

    def clip(self, max_norm: float) -> Tensor:
        parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        if processes.count() > 1:
            for parameter in parameters:
                # A process without a share, or whose share had no image, adds nothing.
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(parameter.grad)
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    @contextmanager
    def whole(self) -> Iterator[None]:
        yield


class CopiesInEightBits(Copies):
    """The same with bitsandbytes' AdamW: a step that is a plain number, moments with scales, tables that it makes."""

    def optimizer_state(self, parameter: Tensor) -> dict[str, Tensor]:
        kept = self.optimizer.state[parameter].items()
        return {entry: torch.as_tensor(value) for entry, value in kept if not entry.startswith("qmap")}

    def takes(self, parameter: Tensor, entry: str, value: Tensor) -> bool:
        own = self._state(parameter).get(entry)
        return own is not None and torch.as_tensor(own).shape == value.shape

    def set_optimizer_state(self, parameter: Tensor, entry: str, value: Tensor) -> None:
        self._state(parameter)[entry] = value.to(parameter.device) if value.ndim else int(value)

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        """The parameter's own, begun if there is none yet."""
        optimizer: Any = self.optimizer
        if not optimizer.state[parameter]:
            for number, group in enumerate(optimizer.param_groups):
                for place, weight in enumerate(group["params"]):
                    if weight is parameter:
                        optimizer.init_state(group, parameter, number, place)
        return optimizer.state[parameter]


class Shards(_Torch):
    """FSDP2 as the configuration of `accelerate launch` wants it."""

    in_step = True

    def __init__(self, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        self.module, prepared = accelerator.prepare(module, optimizer)
        self.optimizer = prepared.optimizer
        # Or the first part that runs on its own would take itself for the root.
        self.module._get_fsdp_state()._lazy_init()

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002, every pass is reduced into the shards
        # The framework averages over the processes.
        self.accelerator.backward(loss * processes.count())

    def frozen(self, module: nn.Module) -> nn.Module:
        return fsdp2_prepare_model(self.accelerator, module.requires_grad_(False))

    def clip(self, max_norm: float) -> Tensor:
        return _whole(self.accelerator.clip_grad_norm_(self.module.parameters(), max_norm))

    @contextmanager
    def whole(self) -> Iterator[None]:
        units = [unit for unit in self.module.modules() if isinstance(unit, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.reshard()
                unit.set_reshard_after_forward(unit is not self.module, recurse=False)


def parallel(module: nn.Module, optimizer: torch.optim.Optimizer) -> Parallel:
    """Wrap a model and its optimizer as `accelerate launch` was configured: FSDP2, DeepSpeed ZeRO-3 or whole copies."""
    accelerator = Accelerator(device_placement=False)
    if accelerator.distributed_type == DistributedType.FSDP:
        return Shards(accelerator, module, optimizer)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from stages.training.zero import Zero

        return Zero(accelerator, module, optimizer)
    copies = Copies if isinstance(optimizer, torch.optim.AdamW) else CopiesInEightBits
    return copies(module, optimizer)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor on the device of `other`, and cut as it is."""
    tensor = tensor.to(other.device)
    if isinstance(other, DTensor):
        return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
    return tensor
