"""One optimizer step with DeepSpeed ZeRO-3: weights, gradients and AdamW's state cut into shards.

DeepSpeed is an extra: nothing but a run that was launched with it imports this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from stages.errors import RecipeError
from stages.runtime import processes
from stages.training.parallel import MOMENTS


class Zero:
    """ZeRO-3 as the configuration of `accelerate launch` wants it; DeepSpeed makes the optimizer step in `clip`."""

    in_step = True
    steps_apart = False

    def __init__(self, accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        plugin = accelerator.state.deepspeed_plugin
        if plugin.zero_stage != 3:
            raise RecipeError(f"zero_stage {plugin.zero_stage} in the launch configuration: only 3 is supported")
        # transformers would cut every model that is loaded from now on.
        unset_hf_deepspeed_config()
        plugin.deepspeed_config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
        self.module, self.optimizer = accelerator.prepare(module, optimizer)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self.module.set_gradient_accumulation_boundary(last)
        # The framework averages over the processes.
        self.module.backward(loss * processes.count())

    def frozen(self, module: nn.Module) -> nn.Module:
        """A whole copy in each process."""
        return module.requires_grad_(False).to(processes.device())

    def clip(self, max_norm: float) -> Tensor:
        self.module.optimizer.clip_grad = max_norm
        self.module.step()
        return torch.as_tensor(self.module.get_global_grad_norm())

    @contextmanager
    def whole(self) -> Iterator[None]:
        offload = self.module.optimizer.parameter_offload
        with GatheredParameters(list(self.module.parameters())):
            # Hooks would cut the weights again behind every layer that has run.
            for parameter in self.module.parameters():
                parameter.ds_active_sub_modules.clear()
            for hook in (*offload.forward_hooks, *offload.backward_hooks):
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload._register_deepspeed_module(offload.module)

    def whole_tensor(self, tensor: Tensor) -> Tensor:
        """Trained weights as the optimizer holds them, in float32."""
        if not hasattr(tensor, "ds_id"):
            return tensor
        if tensor.requires_grad:
            return safe_get_full_fp32_param(tensor)
        with GatheredParameters([tensor]):
            return tensor.detach().clone()

    @torch.no_grad()
    def set_tensor(self, tensor: Tensor, value: Tensor) -> None:
        if hasattr(tensor, "ds_id"):
            safe_set_full_fp32_param(tensor, value)
        else:
            tensor.copy_(value)

    def optimizer_state(self, parameter: Tensor) -> dict[str, Tensor]:
        if not parameter.requires_grad:
            return {}
        return {
            entry: safe_get_full_optimizer_state(parameter, entry) if value.ndim else value.clone()
            for entry, value in self._flat_state(parameter).items()
        }

    def takes(self, parameter: Any, entry: str, value: Tensor) -> bool:
        return entry in MOMENTS and value.shape == parameter.ds_shape if value.ndim else True

    def set_optimizer_state(self, parameter: Any, entry: str, value: Tensor) -> None:
        state = self._flat_state(parameter)
        if value.ndim == 0:
            state[entry] = value
            return
        state.setdefault(entry, torch.zeros_like(self._flat(parameter)))
        # The last process's part is filled up with zeros.
        size = parameter.ds_tensor.numel()
        own = value.flatten()[processes.index() * size :][:size]
        safe_set_local_optimizer_state(parameter, nn.functional.pad(own, (0, size - len(own))), entry)

    def _flat(self, parameter: Any) -> Tensor:
        """This process's part of all parameters that are stepped together with this one."""
        zero = self.module.optimizer
        return zero.fp32_partitioned_groups_flat[zero.grad_position[zero.get_param_id(parameter)][0]]

    def _flat_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return self.module.optimizer.optimizer.state[self._flat(parameter)]
