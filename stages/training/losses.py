"""What an optimizer step minimises: the supervised loss, and the policy objectives with their gates.

Axes: B responses of a micro-batch, T tokens of the longest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.core.objectives import has_critic, objective_hyper, policy_loss, ratio_metrics, reads_every_token
from stages.core.preferences import DPO_BETA
from stages.core.sampler_mismatch import mismatch, truncated_weights
from stages.core.values import CriticSettings, value_loss
from stages.errors import RecipeError
from stages.model.layout import Reading
from stages.model.logprobs import ResponseLogprobs, places
from stages.sections import ObjectiveSection, RolloutSection
from stages.training.trainer import Loss, Measured, Metric, Totals, TrainingRow

logger = logging.getLogger(__name__)

FIRST_STEP_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Root mean square difference in log-prob, in nats, that two ways to compute it may have (our choice)."""


class SupervisedLoss:
    """Eq. 1: mean negative log-likelihood over the step's response tokens."""

    has_kl = False

    def reading(self, row: TrainingRow) -> Reading:
        return Reading(row.prompt, row.ids)

    def __call__(
        self,
        rows: Sequence[TrainingRow],
        logprobs: ResponseLogprobs,
        _reference_BT: Tensor | None,
        totals: Totals,
    ) -> tuple[Tensor, dict[str, Metric]]:
        loss = -logprobs.logprobs_BT.sum() / totals.num_tokens
        tokens = _tokens(rows)
        return loss, {"entropy": Metric(logprobs.entropy_BT.sum().double() / tokens, tokens)}


def check_objective(section: ObjectiveSection, rollout: RolloutSection, *, with_critic: bool = True) -> None:
    """Refuse a hyper-parameter that the recipe's algorithm does not take, or one out of bounds.

    Without `with_critic` not even PPO has a critic: something else makes its advantages.

    Raises:
        RecipeError: names it and what the algorithm takes.
    """
    if section.overlong_buffer > rollout.max_new_tokens:
        raise RecipeError(
            f"objective.overlong_buffer is {section.overlong_buffer}, more than rollout.max_new_tokens "
            f"({rollout.max_new_tokens}); lower it"
        )
    takes = {"beta": DPO_BETA} if section.algorithm == "dpo" else objective_hyper(section.algorithm)
    for name in section.hyper():
        if name not in takes:
            raise RecipeError(f"objective.{name} is set, but {section.algorithm} takes only {', '.join(takes)}")
    if section.critic() and not (with_critic and has_critic(section.algorithm)):
        told = f"objective.{next(iter(section.critic()))} is set, but {section.algorithm} has no critic"
        raise RecipeError(told if with_critic else f"{told} beside train.advantage=prime")
    if section.algorithm == "dpo" and section.overlong_buffer:
        raise RecipeError("objective.overlong_buffer is set, but dpo has no reward to take it from; leave it out")
    if section.algorithm == "dpo" and section.importance_cap is not None:
        raise RecipeError("objective.importance_cap is set, but dpo has no use for who sampled a pair; leave it out")


class PolicyTensors(NamedTuple):
    """What an objective reads of a micro-batch; names are `policy_loss`'s."""

    logprobs_BT: Tensor
    old_logprobs_BT: Tensor
    advantages_B: Tensor
    response_mask_BT: Tensor
    gate_BT: Tensor


class PolicyObjective:
    """The recipe's objective, with metrics for each role (error, repair, correct) on its own.

    Dr.GRPO's length budget is the longest response that can be sampled, unless the recipe sets another. PPO's critic
    learns beside it, from every token, unless it is left out: something else then makes the advantages.
    """

    def __init__(self, section: ObjectiveSection, rollout: RolloutSection, *, with_critic: bool = True) -> None:
        self.algorithm = section.algorithm
        self.hyper = section.hyper()
        if self.algorithm == "dr_grpo":
            self.hyper.setdefault("max_response_length", rollout.max_new_tokens)
        self.has_kl = section.kl_coef > 0
        learns = with_critic and has_critic(self.algorithm)
        self.critic = CriticSettings(**section.critic()) if learns else None
        self.importance_cap = section.importance_cap
        self.reads_every_token = reads_every_token(self.algorithm, kl_coef=section.kl_coef)

    def reading(self, row: TrainingRow) -> Reading:
        """Tokens whose gate is 0 are read where the sequence's ratio, the KL or the critic needs them, without a
        gradient where only the ratio does."""
        if self.has_kl or self.critic:
            return Reading(row.prompt, row.ids)
        reading = open_reading(row)
        return replace(reading, read_T=None) if self.reads_every_token else reading

    def __call__(
        self,
        rows: Sequence[TrainingRow],
        logprobs: ResponseLogprobs,
        reference_BT: Tensor | None,
        totals: Totals,
    ) -> tuple[Tensor, dict[str, Measured]]:
        tensors = policy_tensors(rows, logprobs)
        result = policy_loss(
            self.algorithm,
            ref_logprobs_BT=reference_BT,
            weights_BT=self._importance_weights(rows, tensors),
            num_sequences=totals.num_sequences,
            num_tokens=totals.num_tokens,
            **tensors._asdict(),
            **self.hyper,
        )
        metrics: dict[str, Measured] = {**self._role_metrics(rows, tensors, logprobs.entropy_BT)}
        if reference_BT is not None:
            metrics |= {name: Metric(result.metrics[name], _tokens(rows)) for name in ("kl_ref", "kl_ref_clamped")}
        if self.critic is None:
            return result.loss, metrics
        value, value_metrics = _value_loss(rows, logprobs.values_BT, tensors.response_mask_BT, self.critic, totals)
        return result.loss + self.critic.value_coef * value, metrics | value_metrics

    def _importance_weights(self, rows: Sequence[TrainingRow], tensors: PolicyTensors) -> Tensor | None:
        """1 for a response that the trained model did not sample; None without a cap."""
        if self.importance_cap is None:
            return None
        sampler_BT = _padded(
            [row.old_logprobs_T if row.sampler_logprobs_T is None else row.sampler_logprobs_T for row in rows],
            rows,
            tensors.response_mask_BT,
        )
        return truncated_weights(tensors.old_logprobs_BT, sampler_BT, tensors.response_mask_BT, cap=self.importance_cap)

    def _role_metrics(
        self, rows: Sequence[TrainingRow], tensors: PolicyTensors, entropy_BT: Tensor
    ) -> dict[str, Metric]:
        """All but the gate's density are over tokens whose gate is open."""
        metrics: dict[str, Metric] = {}
        for role in sorted({row.role for row in rows}):
            own = [row for row in rows if row.role == role]
            picked_P = places(torch.tensor([row.role == role for row in rows]), entropy_BT.device)
            part = PolicyTensors(*(tensor[picked_P] for tensor in tensors))
            values = ratio_metrics(self.algorithm, **part._asdict(), **self.hyper)
            opened = sum(int(np.count_nonzero(np.asarray(_gate(row), np.float32))) for row in own)
            values["entropy"] = torch.where(part.gate_BT != 0, entropy_BT[picked_P], 0).sum() / max(opened, 1)
            weights = dict.fromkeys(values, opened) | {"gate_density": _tokens(own)}
            metrics |= {f"{name}/{role}": Metric(value, weights[name]) for name, value in values.items()}
        return metrics


def open_reading(row: TrainingRow) -> Reading:
    """The tokens whose gate is not 0."""
    open_T = None if row.gate_T is None else np.asarray(row.gate_T) != 0
    return Reading(row.prompt, row.ids, read_T=open_T, graph_T=open_T)


def policy_tensors(rows: Sequence[TrainingRow], logprobs: ResponseLogprobs) -> PolicyTensors:
    """Tokens that are not read stand at their old log-prob: a ratio of 1 behind a gate of 0."""
    mask_BT = _response_mask(rows, logprobs.logprobs_BT)
    old_BT = _padded([row.old_logprobs_T for row in rows], rows, mask_BT)
    return PolicyTensors(
        logprobs_BT=torch.where(logprobs.read_BT, logprobs.logprobs_BT, old_BT),
        old_logprobs_BT=old_BT,
        advantages_B=_advantages(rows, mask_BT),
        response_mask_BT=mask_BT,
        gate_BT=_padded([_gate(row) for row in rows], rows, mask_BT),
    )


def mismatch_metrics(rows: Sequence[TrainingRow]) -> dict[str, float]:
    """How far the sampler's log-probs are from the old ones, which have the trainer's numerics.

    Over all tokens of the rows that the trained model sampled; nothing where there are none.
    """
    sampled = [(row, row.sampler_logprobs_T) for row in rows if row.sampler_logprobs_T is not None]
    if not sampled:
        return {}
    own = [row for row, _ in sampled]
    mask_BT = _response_mask(own, torch.empty(len(own), max(len(row.ids) for row in own)))
    old_BT = _padded([row.old_logprobs_T for row in own], own, mask_BT)
    found = mismatch(old_BT, _padded([logprobs_T for _, logprobs_T in sampled], own, mask_BT), mask_BT)
    return {
        "mismatch_mean": found.mean,
        "mismatch_max": found.largest,
        "effective_sample_size": found.effective_sample_size,
    }


def first_step_ratio(rows: Sequence[TrainingRow], read: Sequence[TrainingRow], loss_function: Loss) -> float | None:
    """exp of the root mean square of the log-ratios at weights that are still those which made the groups, 1 at best.

    `rows` have the groups' old log-probs, `read` those of the trainer (`Trainer.with_old_logprobs`); over the tokens
    that the loss reads, None where it reads none.
    """
    differences = [
        new.old_logprobs_T[token] - row.old_logprobs_T[token]
        for row, new in zip(rows, read, strict=True)
        for token in loss_function.reading(row).tokens_read
    ]
    return math.exp(root_mean_square(differences)) if differences else None


def root_mean_square(values: Sequence[float]) -> float:
    """0 of none."""
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


def check_first_step(ratio: float, groups: Path, dtype: torch.dtype) -> None:
    """Say aloud that the groups' old log-probs are not those of the policy that is trained."""
    if not math.log(ratio) <= FIRST_STEP_TOLERANCE[dtype]:
        logger.warning(
            "%s: the policy's log-probs before its first step are not the groups' old ones: ratio_first_step is %.4g, "
            "and %.4g at most where numerics alone differ. Another policy, temperature, prompt or image size made "
            "them, and every ratio is wrong; run df build-masks with this policy and recipe",
            groups,
            ratio,
            math.exp(FIRST_STEP_TOLERANCE[dtype]),
        )


def _response_mask(rows: Sequence[TrainingRow], like_BT: Tensor) -> Tensor:
    lengths_B = torch.tensor([len(row.ids) for row in rows])
    mask_BT = torch.arange(like_BT.shape[1]) < lengths_B[:, None]
    return mask_BT.to(like_BT.device, non_blocking=True)


def _advantages(rows: Sequence[TrainingRow], mask_BT: Tensor) -> Tensor:
    """(B,), or (B, T) where each token has its own."""
    by_token = [row.advantage_T for row in rows if row.advantage_T is not None]
    if by_token:
        return _padded(by_token, rows, mask_BT)
    return torch.tensor([row.advantage for row in rows]).to(mask_BT.device, non_blocking=True)


def _value_loss(
    rows: Sequence[TrainingRow], values_BT: Tensor, mask_BT: Tensor, critic: CriticSettings, totals: Totals
) -> tuple[Tensor, dict[str, Measured]]:
    """Over every response token, whatever the gate; `value_loss` is told without its weight."""
    result = value_loss(
        values_BT,
        _padded([row.values_T for row in rows], rows, mask_BT),
        _padded([row.returns_T for row in rows], rows, mask_BT),
        mask_BT,
        clip=critic.value_clip,
        num_tokens=totals.num_tokens,
    )
    tokens = _tokens(rows)
    metrics: dict[str, Measured] = {
        "value_loss": Metric(result.loss.double() * totals.num_tokens / max(tokens, 1), tokens),
        "value_clip_fraction": Metric(result.clip_fraction, tokens),
        "explained_variance": result.fit,
    }
    return result.loss, metrics


def _gate(row: TrainingRow) -> Sequence[float]:
    return [1.0] * len(row.ids) if row.gate_T is None else row.gate_T


def _tokens(rows: Sequence[TrainingRow]) -> int:
    return sum(len(row.ids) for row in rows)


def _padded(values: Sequence[Sequence[float]], rows: Sequence[TrainingRow], mask_BT: Tensor) -> Tensor:
    """One value a response token, in one copy; ValueError where a row has more or fewer."""
    padded_BT = np.zeros(mask_BT.shape, np.float32)
    for number, (value_T, row) in enumerate(zip(values, rows, strict=True)):
        if len(value_T) != len(row.ids):
            raise ValueError(
                f"row {number}: {len(row.ids)} response tokens, {len(value_T)} values; log-probs, gates, values and "
                "returns need one each"
            )
        padded_BT[number, : len(value_T)] = value_T
    return torch.from_numpy(padded_BT).to(mask_BT.device, non_blocking=True)
