"""What an optimizer step minimises: the supervised loss, and the policy objectives with their gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.core.objectives import objective_hyper, policy_loss, ratio_metrics
from stages.errors import RecipeError
from stages.model.batches import ResponseBatch
from stages.model.logprobs import ResponseLogprobs
from stages.recipe import ObjectiveSection, RolloutSection
from stages.training.trainer import LossFunction, Metric, Totals, TrainingRow


def supervised_loss(
    _rows: Sequence[TrainingRow],
    batch: ResponseBatch,
    logprobs: ResponseLogprobs,
    _reference_BT: Tensor | None,
    totals: Totals,
) -> tuple[Tensor, dict[str, Metric]]:
    """Eq. 1: mean negative log-likelihood over the step's response tokens."""
    loss = -logprobs.logprobs_BT.sum() / totals.num_tokens
    tokens = int(batch.response_mask_BT.sum())
    return loss, {"entropy": Metric(logprobs.entropy_BT.sum().item() / tokens, tokens)}


def check_objective(section: ObjectiveSection, rollout: RolloutSection) -> None:
    """Refuse a hyper-parameter that the recipe's algorithm does not take, or one out of bounds.

    Raises:
        RecipeError: names it and what the algorithm takes.
    """
    if section.overlong_buffer > rollout.max_new_tokens:
        raise RecipeError(
            f"objective.overlong_buffer is {section.overlong_buffer}, more than rollout.max_new_tokens "
            f"({rollout.max_new_tokens}); lower it"
        )
    takes = objective_hyper(section.algorithm)
    for name in section.hyper():
        if name not in takes:
            raise RecipeError(f"objective.{name} is set, but {section.algorithm} takes only {', '.join(takes)}")


def policy_objective(section: ObjectiveSection, rollout: RolloutSection) -> LossFunction:
    """The recipe's objective, with metrics for each role (error, repair, correct) on its own.

    Dr.GRPO's length budget is the longest response that can be sampled, unless the recipe sets another.
    """
    hyper = section.hyper()
    if section.algorithm == "dr_grpo":
        hyper.setdefault("max_response_length", rollout.max_new_tokens)

    def loss_function(
        rows: Sequence[TrainingRow],
        batch: ResponseBatch,
        logprobs: ResponseLogprobs,
        reference_BT: Tensor | None,
        totals: Totals,
    ) -> tuple[Tensor, dict[str, Metric]]:
        mask_BT = batch.response_mask_BT
        tensors = PolicyTensors(
            logprobs_BT=logprobs.logprobs_BT,
            old_logprobs_BT=_padded([row.old_logprobs_T for row in rows], mask_BT),
            advantages_B=torch.tensor([row.advantage for row in rows], device=mask_BT.device),
            response_mask_BT=mask_BT,
            gate_BT=_padded([[1.0] * len(row.ids) if row.gate_T is None else row.gate_T for row in rows], mask_BT),
        )
        result = policy_loss(
            section.algorithm,
            ref_logprobs_BT=reference_BT,
            num_sequences=totals.num_sequences,
            num_tokens=totals.num_tokens,
            **tensors._asdict(),
            **hyper,
        )
        metrics = _role_metrics(section.algorithm, hyper, rows, tensors, logprobs.entropy_BT)
        if reference_BT is not None:
            metrics["kl_ref"] = Metric(result.metrics["kl_ref"].item(), int(mask_BT.sum()))
        return result.loss, metrics

    return loss_function


class PolicyTensors(NamedTuple):
    """What an objective reads of a micro-batch; names are `policy_loss`'s."""

    logprobs_BT: Tensor
    old_logprobs_BT: Tensor
    advantages_B: Tensor
    response_mask_BT: Tensor
    gate_BT: Tensor


def _role_metrics(
    algorithm: str,
    hyper: dict[str, Any],
    rows: Sequence[TrainingRow],
    tensors: PolicyTensors,
    entropy_BT: Tensor,
) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for role in sorted({row.role for row in rows}):
        picked = torch.tensor([row.role == role for row in rows], device=entropy_BT.device)
        part = PolicyTensors(*(tensor[picked] for tensor in tensors))
        values = ratio_metrics(algorithm, **part._asdict(), **hyper)
        tokens = int(part.response_mask_BT.sum())
        values["entropy"] = entropy_BT[picked].sum() / max(tokens, 1)
        metrics |= {f"{name}/{role}": Metric(value.item(), tokens) for name, value in values.items()}
    return metrics


def _padded(values: Sequence[Sequence[float]], mask_BT: Tensor) -> Tensor:
    """One value a response token; ValueError where a row has more or fewer."""
    padded_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    for row, (value_T, length) in enumerate(zip(values, mask_BT.sum(-1).tolist(), strict=True)):
        if len(value_T) != length:
            raise ValueError(
                f"row {row}: {length} response tokens, {len(value_T)} values; old log-probs and gates need one each"
            )
        padded_BT[row, : len(value_T)] = torch.as_tensor(value_T, dtype=torch.float32)
    return padded_BT
