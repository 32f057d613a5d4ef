"""TRL: `GRPOTrainer` with a token-level gate on its advantages (eq. 10).

It extends private methods of trl 1.16.0, the version that it is tested with. Axes: B completions of a generation batch
on this process, T tokens of the longest, padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from trl.trainer.grpo_trainer import GRPOTrainer

Row: TypeAlias = dict[str, Any]
GateFunction: TypeAlias = Callable[[list[Row], list[list[int]]], Sequence[Sequence[float]]]


class GatedGRPOTrainer(GRPOTrainer):
    """TRL's GRPO, in which each completion's advantage is multiplied token by token.

    `gate_func(rows, completion_ids)` is asked once for each batch of completions. It gets their rows of the data set,
    with the fields that a `rollout_func` added, and their token ids; it returns a list for each, with one weight for
    each token: `error_T` or `repair_T` of `stages.core.difference_masks`, or soft weights. Gates of ones are TRL's own
    GRPO. Rewards, denominators, KL and entropy terms stay TRL's. The loss types grpo, bnpo, dapo, dr_grpo, cispo and
    sapo are tested.

    `rows` are those whose completions are being made: a `rollout_func` is given the prompts alone.

    Where a `rollout_func` returns repairs and vLLM runs, turn `vllm_importance_sampling_correction` off: another prompt
    sampled them, so the sampler's log-probs are not the policy's.

    Raises:
        ValueError: `importance_sampling_level` is not `token`: through the sequence's ratio each token's gradient would
            carry the mean advantage; a gate has not one weight for each token of its completion.
    """

    def __init__(self, *args: Any, gate_func: GateFunction, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.importance_sampling_level != "token":
            raise ValueError(
                f"importance_sampling_level is {self.importance_sampling_level!r}, which gives every token of a "
                "sequence the mean gated advantage; set it to 'token'"
            )
        self.gate_func = gate_func
        self.rows: list[Row] = []
        self._gates: list[torch.Tensor] = []

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        self.rows = inputs
        batch = super()._generate_and_score_completions(inputs)
        gate_BT = torch.zeros_like(batch["completion_mask"], dtype=batch["advantages"].dtype)
        for row_T, gate_T in zip(gate_BT, self._gates, strict=True):
            row_T[: len(gate_T)] = gate_T
        batch["advantages"] = batch["advantages"][:, None] * gate_BT
        return batch

    def _calculate_rewards(
        self, inputs: list[Row], prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        gates = self.gate_func(inputs, completion_ids_list)
        self._gates = [_checked(gate, ids) for gate, ids in zip(gates, completion_ids_list, strict=True)]
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)


def _checked(gate: Sequence[float], ids: Sequence[int]) -> torch.Tensor:
    if len(gate) != len(ids):
        raise ValueError(f"a gate of {len(gate)} weights for a completion of {len(ids)} tokens; return one for each")
    return torch.as_tensor(gate, dtype=torch.float32)
