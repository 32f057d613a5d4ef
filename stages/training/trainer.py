"""The one optimisation loop that repair SFT, repair RL and policy training share."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stages.errors import ModelError
from stages.model.batches import EncodedPrompt
from stages.model.layout import Reading
from stages.model.loading import VisionLanguageModel
from stages.model.logprobs import LogprobReader, ResponseLogprobs
from stages.recipe import OptimizerSection, TrainerSection
from stages.training.optimizer_state import load_optimizer_state, save_optimizer_state

OPTIMIZER_STATE = "optimizer.safetensors"
MACHINE_METRICS = ("padding_share", "tokens_per_second", "peak_memory_gib")
"""Metrics that tell of the machine, not of the model: they differ from run to run."""


@dataclass(frozen=True)
class TrainingRow:
    """One trajectory: what the model was given, and the response that is trained on.

    Rows of one group share a prompt object. The last two have the response's length T; SFT leaves both out, repair RL
    the gate.
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


class Loss(Protocol):
    """What a step minimises."""

    def reading(self, row: TrainingRow) -> Reading:
        """Which of the row's log-probs the loss reads, and which of them have a gradient."""
        ...

    def __call__(
        self,
        rows: Sequence[TrainingRow],
        logprobs: ResponseLogprobs,
        reference_BT: Tensor | None,
        totals: Totals,
        /,
    ) -> tuple[Tensor, dict[str, Metric]]:
        """Loss and metrics of a micro-batch, from its log-probs, the reference's (B, T), and the denominators."""
        ...


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
        machine: TrainerSection | None = None,
        reference: VisionLanguageModel | None = None,
        resume_from: Path | None = None,
    ) -> None:
        self.vlm = vlm
        self.section = section
        self.machine = machine or TrainerSection()
        self.temperature = temperature
        self.reader = LogprobReader(vlm)
        self.reference = None if reference is None else LogprobReader(reference)
        self.optimizer = torch.optim.AdamW(
            vlm.model.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay
        )
        self.steps_done = 0
        if resume_from is not None and (resume_from / OPTIMIZER_STATE).is_file():
            self.steps_done = load_optimizer_state(resume_from / OPTIMIZER_STATE, vlm.model, self.optimizer)

    def step(self, rows: Sequence[TrainingRow], loss_function: Loss, totals: Totals | None = None) -> dict[str, float]:
        """One optimizer step over `rows`, in micro-batches whose losses add up to the whole batch's.

        `totals` are the denominators where they differ from those of `rows`: rows that are known to have no
        gradient may be left out of the work but count. Returns the step's metrics.

        Raises:
            ModelError: the gradient is not finite.
        """
        totals = totals or totals_of(rows)
        work = _Work(self, rows, loss_function, totals)
        self.vlm.model.train()
        self._set_learning_rate()
        self.optimizer.zero_grad()
        work.run()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.vlm.model.parameters(), self.section.max_grad_norm)
        self.steps_done += 1
        if not grad_norm.isfinite():
            raise ModelError(
                f"optimizer step {self.steps_done}: gradient norm is {grad_norm.item()}; lower the learning rate"
            )
        self.optimizer.step()
        self.vlm.model.eval()
        return work.metrics() | {
            "grad_norm": grad_norm.item(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    @torch.no_grad()
    def with_old_logprobs(self, rows: Sequence[TrainingRow]) -> list[TrainingRow]:
        """The rows with the model's present log-probs as their old ones, in the numerics of training."""
        readings = [Reading(row.prompt, row.ids) for row in rows]
        scored: dict[int, TrainingRow] = {}
        for members in self.reader.micro_batches(readings, self.machine.tokens_per_micro_batch):
            logprobs = self.reader.read([readings[i] for i in members], temperature=self.temperature)
            for i, logprobs_T in zip(members, logprobs.logprobs_BT.tolist(), strict=True):
                scored[i] = replace(rows[i], old_logprobs_T=logprobs_T[: len(rows[i].ids)])
        return [scored[i] for i in range(len(rows))]

    def save(self, folder: Path, model_folder: Path) -> None:
        """Write the checkpoint to `model_folder` and the optimizer's state to `folder`."""
        self.vlm.save(model_folder)
        save_optimizer_state(folder / OPTIMIZER_STATE, self.vlm.model, self.optimizer, self.steps_done)

    def _set_learning_rate(self) -> None:
        warm = min(1.0, (self.steps_done + 1) / max(self.section.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.section.learning_rate * warm


class _Work:
    """Forward and backward passes of one optimizer step, and what they measured."""

    def __init__(self, trainer: Trainer, rows: Sequence[TrainingRow], loss_function: Loss, totals: Totals) -> None:
        self.trainer = trainer
        self.rows = rows
        self.loss_function = loss_function
        self.totals = totals
        self.loss_sum = 0.0
        self.parts: dict[str, list[Metric]] = defaultdict(list)
        self.tokens = self.slots = 0
        self.started = time.perf_counter()

    def run(self) -> None:
        readings = [self.loss_function.reading(row) for row in self.rows]
        for members in self.trainer.reader.micro_batches(readings, self.trainer.machine.tokens_per_micro_batch):
            self._micro_batch([self.rows[i] for i in members], [readings[i] for i in members])

    def metrics(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        return {name: _combine(name, values) for name, values in self.parts.items()} | {
            "loss": self.loss_sum,
            "padding_share": 1 - self.tokens / max(self.slots, 1),
            "tokens_per_second": self.tokens / seconds,
            "peak_memory_gib": _peak_memory_gib(),
        }

    def _micro_batch(self, rows: Sequence[TrainingRow], readings: Sequence[Reading]) -> None:
        reader, reference = self.trainer.reader, self.trainer.reference
        layout = reader.layout(readings)
        self.tokens += layout.tokens
        self.slots += layout.slots
        temperature = self.trainer.temperature
        reference_BT = None
        if reference is not None:
            with torch.no_grad():
                reference_BT = reference.read(readings, temperature=temperature, layout=layout).logprobs_BT
        logprobs = reader.read(readings, temperature=temperature, layout=layout)
        loss, metrics = self.loss_function(rows, logprobs, reference_BT, self.totals)
        loss.backward()
        self.loss_sum += loss.item()
        for name, metric in metrics.items():
            self.parts[name].append(metric)


def _peak_memory_gib() -> float:
    """The largest so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def totals_of(rows: Sequence[TrainingRow]) -> Totals:
    return Totals(len(rows), sum(len(row.ids) for row in rows))


def _combine(name: str, parts: Sequence[Metric]) -> float:
    """The step's value: the largest of a maximum, else the weighted mean."""
    if name.startswith("ratio_max"):
        return max(part.value for part in parts)
    return sum(part.value * part.weight for part in parts) / max(sum(part.weight for part in parts), 1)
