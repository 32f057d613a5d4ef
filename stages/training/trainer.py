"""The one optimisation loop that repair SFT, repair RL and policy training share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from stages.batching import batched
from stages.errors import ModelError
from stages.model.batches import EncodedPrompt, ResponseBatch, response_batch
from stages.model.loading import VisionLanguageModel
from stages.model.logprobs import ResponseLogprobs, response_logprobs
from stages.recipe import OptimizerSection
from stages.training.optimizer_state import load_optimizer_state, save_optimizer_state

OPTIMIZER_STATE = "optimizer.safetensors"


@dataclass(frozen=True)
class TrainingRow:
    """One trajectory: what the model was given, and the response that is trained on.

    The last two have the response's length T; SFT leaves both out, repair RL the gate.
    """

    prompt: EncodedPrompt
    ids: Sequence[int]
    role: str
    advantage: float = 1.0
    gate_T: Sequence[float] | None = None
    old_logprobs_T: Sequence[float] = ()


class Totals(NamedTuple):
    """Denominators of one optimizer step, over all its micro-batches."""

    num_sequences: int
    num_tokens: int


class Metric(NamedTuple):
    """A micro-batch's value and the weight (tokens, rows) with which it enters the step's mean."""

    value: float
    weight: float


LossFunction: TypeAlias = Callable[
    [Sequence[TrainingRow], ResponseBatch, ResponseLogprobs, Tensor | None, Totals], tuple[Tensor, dict[str, Metric]]
]
"""Loss and metrics of a micro-batch, from its log-probs, the reference's log-probs (B, T), and the denominators."""


class Trainer:
    """AdamW over the whole model, one optimizer step a call.

    The optimizer's state and its step count live beside the checkpoint and carry over from round to round. A frozen
    `reference` gives the log-probs that a KL term compares with.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        section: OptimizerSection,
        *,
        temperature: float,
        reference: VisionLanguageModel | None = None,
        resume_from: Path | None = None,
    ) -> None:
        self.vlm = vlm
        self.reference = reference
        self.section = section
        self.temperature = temperature
        self.optimizer = torch.optim.AdamW(
            vlm.model.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay
        )
        self.steps_done = 0
        if resume_from is not None and (resume_from / OPTIMIZER_STATE).is_file():
            self.steps_done = load_optimizer_state(resume_from / OPTIMIZER_STATE, vlm.model, self.optimizer)

    def step(
        self, rows: Sequence[TrainingRow], loss_function: LossFunction, totals: Totals | None = None
    ) -> dict[str, float]:
        """One optimizer step over `rows`, in micro-batches whose losses add up to the whole batch's.

        `totals` are the denominators where they differ from those of `rows`: rows that are known to have no
        gradient may be left out of the work but count. Returns the step's metrics.

        Raises:
            ModelError: the gradient is not finite.
        """
        totals = totals or totals_of(rows)
        self.vlm.model.train()
        self._set_learning_rate()
        self.optimizer.zero_grad()
        loss_sum = 0.0
        parts: dict[str, list[Metric]] = defaultdict(list)
        for micro_batch in self._micro_batches(rows):
            loss, metrics = self._loss(micro_batch, loss_function, totals)
            loss.backward()
            loss_sum += loss.item()
            for name, metric in metrics.items():
                parts[name].append(metric)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.vlm.model.parameters(), self.section.max_grad_norm)
        self.steps_done += 1
        if not grad_norm.isfinite():
            raise ModelError(
                f"optimizer step {self.steps_done}: gradient norm is {grad_norm.item()}; lower the learning rate"
            )
        self.optimizer.step()
        self.vlm.model.eval()
        return {name: _combine(name, values) for name, values in parts.items()} | {
            "loss": loss_sum,
            "grad_norm": grad_norm.item(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def save(self, folder: Path, model_folder: Path) -> None:
        """Write the checkpoint to `model_folder` and the optimizer's state to `folder`."""
        self.vlm.save(model_folder)
        save_optimizer_state(folder / OPTIMIZER_STATE, self.vlm.model, self.optimizer, self.steps_done)

    def _loss(
        self, rows: Sequence[TrainingRow], loss_function: LossFunction, totals: Totals
    ) -> tuple[Tensor, dict[str, Metric]]:
        batch = response_batch(self.vlm, [row.prompt for row in rows], [row.ids for row in rows])
        logprobs = response_logprobs(self.vlm, batch, temperature=self.temperature)
        return loss_function(rows, batch, logprobs, self._reference_logprobs(batch), totals)

    @torch.no_grad()
    def _reference_logprobs(self, batch: ResponseBatch) -> Tensor | None:
        if self.reference is None:
            return None
        return response_logprobs(self.reference, batch, temperature=self.temperature).logprobs_BT

    def _micro_batches(self, rows: Sequence[TrainingRow]) -> Iterator[list[TrainingRow]]:
        by_length = sorted(rows, key=lambda row: len(row.prompt.ids) + len(row.ids))
        return batched(by_length, self.section.rows_per_micro_batch)

    def _set_learning_rate(self) -> None:
        warm = min(1.0, (self.steps_done + 1) / max(self.section.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.section.learning_rate * warm


def totals_of(rows: Sequence[TrainingRow]) -> Totals:
    return Totals(len(rows), sum(len(row.ids) for row in rows))


def _combine(name: str, parts: Sequence[Metric]) -> float:
    """The step's value: the largest of a maximum, else the weighted mean."""
    if name.startswith("ratio_max"):
        return max(part.value for part in parts)
    return sum(part.value * part.weight for part in parts) / max(sum(part.weight for part in parts), 1)
