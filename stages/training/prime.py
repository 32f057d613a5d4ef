"""PRIME: a second model learns the outcomes beside the policy, and its log-ratio gives each token an advantage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.artifacts.manifests import MODEL
from stages.core.preferences import gated_log_ratio
from stages.core.process_rewards import outcome_loss, process_advantages
from stages.model.layout import Reading
from stages.model.logprobs import ResponseLogprobs
from stages.sections import PrimeSection
from stages.training.losses import policy_tensors
from stages.training.trainer import Metric, Totals, Trainer, TrainingRow

PRM = "prm"
"""Folder of the implicit process reward model beside the policy, with its optimizer's state."""


def prm_folder(policy: Path) -> Path:
    """The checkpoint that the reward model starts from: an earlier step's, else the policy's own weights."""
    return policy / PRM / MODEL if (policy / PRM).is_dir() else policy


class OutcomeLoss:
    """Cross-entropy on whether a response is correct; the reference's log-probs are the rows' old ones."""

    has_kl = False

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def reading(self, row: TrainingRow) -> Reading:
        return Reading(row.prompt, row.ids)

    def __call__(
        self,
        rows: Sequence[TrainingRow],
        logprobs: ResponseLogprobs,
        _reference_BT: Tensor | None,
        totals: Totals,
    ) -> tuple[Tensor, dict[str, Metric]]:
        tensors = policy_tensors(rows, logprobs)
        log_ratio_B = gated_log_ratio(
            tensors.logprobs_BT, tensors.old_logprobs_BT, response_mask_BT=tensors.response_mask_BT
        )
        outcomes_B = torch.tensor([_is_correct(row) for row in rows]).to(log_ratio_B.device, non_blocking=True)
        loss = outcome_loss(log_ratio_B, outcomes_B, beta=self.beta, num_sequences=totals.num_sequences)
        accuracy = ((log_ratio_B > 0) == outcomes_B).float().mean()
        return loss, {"accuracy": Metric(accuracy, len(rows))}


class ProcessRewards:
    """The implicit process reward model: learns from each step's rollouts, then judges them.

    The reference is the policy that made the groups: its log-probs are the rows' old ones. Over several rounds it
    moves (the published code's `ref_type: policy`; its default keeps the first policy).
    """

    def __init__(self, trainer: Trainer, section: PrimeSection) -> None:
        self.trainer = trainer
        self.section = section
        self.loss = OutcomeLoss(section.beta)

    def with_advantages(self, rows: Sequence[TrainingRow]) -> tuple[list[TrainingRow], dict[str, float]]:
        """The rows of whole groups with the advantage of each token, and metrics of the model that made them.

        The model is updated first and the rewards are the updated one's, as in the published code's default
        (`update: before`); the paper's Algorithm 1 takes those of the model before it.
        """
        learned = self.trainer.step(rows, self.loss)
        scored = self.trainer.with_old_logprobs(rows)
        rewards = [self._rewards(*pair) for pair in zip(scored, rows, strict=True)]
        judged: list[TrainingRow] = []
        for _, members in groupby(range(len(rows)), key=lambda i: id(rows[i].prompt)):
            group = list(members)
            outcomes = [_is_correct(rows[i]) for i in group]
            advantages = process_advantages([rewards[i] for i in group], outcomes, gamma=self.section.gamma)
            judged += [replace(rows[i], advantage_T=own.tolist()) for i, own in zip(group, advantages, strict=True)]
        metrics = {f"prm_{name}": learned[name] for name in ("loss", "accuracy", "grad_norm", "learning_rate")}
        for role in sorted({row.role for row in rows}):
            of_role = [reward_T for row, reward_T in zip(rows, rewards, strict=True) if row.role == role]
            metrics[f"process_reward/{role}"] = float(np.concatenate(of_role).mean())
        return judged, metrics

    def save(self, out: Path) -> None:
        """Write the model and its optimizer's state beside the policy."""
        self.trainer.save(out / PRM, out / PRM / MODEL)

    def _rewards(self, scored: TrainingRow, row: TrainingRow) -> NDArray[np.float64]:
        return self.section.beta * (np.array(scored.old_logprobs_T) - np.array(row.old_logprobs_T))


def _is_correct(row: TrainingRow) -> bool:
    return row.role == "correct"
