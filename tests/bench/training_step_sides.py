"""The benchmark's sides: each makes one optimizer step over the same trajectories, in its own way.

Those that put a group into one row are in `training_step_one_row`, TRL's is in `training_step_trl`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from training_step_case import CLIP, LEARNING_RATE, TEMPERATURE, Case, grpo_term, plain_logprobs

from stages.model.batches import response_batch
from stages.sections import LoraSection, ObjectiveSection, OptimizerSection, RolloutSection, TrainerSection
from stages.training.groups import rows_to_work_on
from stages.training.losses import PolicyObjective
from stages.training.trainer import Trainer, TrainingRow

OBJECTIVE = ObjectiveSection(algorithm="grpo", clip_low=CLIP, clip_high=CLIP)


class Side(Protocol):
    """One way to make the step. Its gradients stay until the next one."""

    model: Any
    optimizer: torch.optim.Optimizer

    def step(self) -> float:
        """Forward, backward, clip, AdamW; returns the loss."""

    def old_logprobs(self) -> list[Tensor]:
        """The pass that reads old log-probs: each row's, (T,). What the step does not read is left as it was."""


class Ours:
    """`Trainer.step`; `rows_at_once` responses to their prompt are a micro-batch."""

    def __init__(
        self,
        case: Case,
        rows_at_once: int,
        *,
        gated: bool,
        checkpointing: bool = False,
        lora: LoraSection | None = None,
    ) -> None:
        vlm = case.vlm()
        section = OptimizerSection(learning_rate=LEARNING_RATE, max_grad_norm=case.max_grad_norm)
        tokens = len(case.prompt.ids) + rows_at_once * max(len(row.ids) for row in case.rows)
        machine = TrainerSection(tokens_per_micro_batch=tokens, gradient_checkpointing=checkpointing, lora=lora)
        self.trainer = Trainer(vlm, section, temperature=TEMPERATURE, machine=machine)
        self.objective = PolicyObjective(OBJECTIVE, RolloutSection(temperature=TEMPERATURE))
        self.rows = case.rows if gated else case.ungated_rows
        self.model, self.optimizer = vlm.model, self.trainer.optimizer

    def step(self) -> float:
        rows, totals = rows_to_work_on(self.rows, OBJECTIVE)
        return self.trainer.step(rows, self.objective, totals)["loss"]

    def old_logprobs(self) -> list[Tensor]:
        rows, _ = rows_to_work_on(self.rows, OBJECTIVE)
        return [torch.tensor(row.old_logprobs_T) for row in self.trainer.with_old_logprobs(rows, self.objective)]


class PlainLoop(ABC):
    """The step written out for `rows_at_once` responses at a time; how their log-probs are read is the side's."""

    def __init__(self, case: Case, rows_at_once: int, *, checkpointing: bool = False) -> None:
        self.case, self.vlm = case, case.vlm()
        self.model, self.banned_ids = self.vlm.model, list(self.vlm.banned_ids)
        if checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        fused = torch.cuda.is_available() or None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=fused)
        rows = case.ungated_rows
        self.micro_batches = [rows[start : start + rows_at_once] for start in range(0, len(rows), rows_at_once)]

    def step(self) -> float:
        self.model.train()
        self.optimizer.zero_grad()
        loss = sum(self._backward(rows) for rows in self.micro_batches)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.case.max_grad_norm)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def old_logprobs(self) -> list[Tensor]:
        self.model.eval()
        with self.vlm.precision():
            return [logprobs_T for rows in self.micro_batches for logprobs_T in self._logprobs(rows)]

    def _backward(self, rows: Sequence[TrainingRow]) -> float:
        with self.vlm.precision():
            logprobs = self._logprobs(rows)
        terms = [grpo_term(logprobs_T, row) for logprobs_T, row in zip(logprobs, rows, strict=True)]
        loss = torch.stack(terms).sum() / len(self.case.rows)
        loss.backward()
        return loss.item()

    @abstractmethod
    def _logprobs(self, rows: Sequence[TrainingRow]) -> list[Tensor]:
        """Of each row's tokens, (T,)."""


class FullLogits(PlainLoop):
    """Plain padded rows and the logits of every position, as EasyR1's actor does on padded rows."""

    def _logprobs(self, rows: Sequence[TrainingRow]) -> list[Tensor]:
        batch = response_batch(self.vlm, [row.prompt for row in rows], [row.ids for row in rows])
        logits_BSV = self.model(**batch.inputs, use_cache=False).logits
        logits_BTV = logits_BSV.div_(TEMPERATURE)[:, -batch.response_mask_BT.shape[1] - 1 : -1].float()
        logits_BTV[..., self.banned_ids] = float("-inf")
        logprobs_BT = logits_BTV.log_softmax(-1).gather(-1, batch.response_ids_BT[..., None]).squeeze(-1)
        return [logprobs_T[: len(row.ids)] for logprobs_T, row in zip(logprobs_BT, rows, strict=True)]


class Plain:
    """Row by row with nothing shared: what the others' gradients are compared with."""

    def __init__(self, case: Case, rows: Sequence[TrainingRow]) -> None:
        self.model, self.banned_ids, self.rows = case.model(), case.banned_ids(), rows
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def step(self) -> float:
        loss = 0.0
        for row in self.rows:
            term = grpo_term(plain_logprobs(self.model, row, self.banned_ids), row) / len(self.rows)
            term.backward()
            loss += term.item()
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def old_logprobs(self) -> list[Tensor]:
        return [plain_logprobs(self.model, row, self.banned_ids) for row in self.rows]
