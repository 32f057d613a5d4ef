"""The one optimisation loop that repair SFT, repair RL and policy training share."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.artifacts.manifests import OPTIMIZER_STATE
from stages.artifacts.writing import writing
from stages.core.values import Fit, explained_variance
from stages.errors import ModelError
from stages.model.batches import EncodedPrompt
from stages.model.layout import Layout, Reading, inseparable
from stages.model.loading import VisionLanguageModel
from stages.model.logprobs import LogprobReader, ResponseLogprobs, made_up_group
from stages.runtime import processes
from stages.sections import OptimizerSection, TrainerSection
from stages.seeds import Purpose, derive_seed
from stages.training.critic import CRITIC, has_learned_critic, open_critic, save_critic
from stages.training.optimizer_state import (
    load_optimizer_state,
    load_trained,
    save_masters,
    save_optimizer_state,
    save_trained,
)
from stages.training.parallel import parallel
from stages.training.quantized import adamw_in_eight_bits, in_eight_bits
from stages.training.weights import masters_of, plain_state, prepare_weights, save_adapters

TRAINED = "trained.safetensors"
COUNTERS = "counters.json"
ADAPTERS = "adapter"
MACHINE_METRICS = ("padding_share", "tokens_per_second", "peak_memory_gib")
"""Metrics that tell of the machine, not of the model: they differ from run to run."""


@dataclass(frozen=True)
class TrainingRow:
    """One trajectory: what the model was given, and the response that is trained on.

    Rows of one group share a prompt object. What ends in T has the response's length; SFT leaves all of it out, repair
    RL the gate. `values_T` and `returns_T` are PPO's alone.
    """

    prompt: EncodedPrompt
    ids: Sequence[int]
    role: str
    advantage: float = 1.0
    gate_T: Sequence[float] | None = None
    old_logprobs_T: Sequence[float] = ()
    values_T: Sequence[float] = ()
    """The old critic's."""
    advantage_T: Sequence[float] | None = None
    """In place of `advantage`."""
    returns_T: Sequence[float] = ()
    sampler_logprobs_T: Sequence[float] | None = None
    """Of the engine that sampled it; None where that was not the model that is trained."""


class Totals(NamedTuple):
    """Denominators of one optimizer step, over all its micro-batches."""

    num_sequences: int
    num_tokens: int


class Metric(NamedTuple):
    """A micro-batch's value and the weight (tokens, rows) with which it enters the step's mean."""

    value: float | Tensor
    """A scalar that is still on the device is fetched behind the backward pass."""
    weight: float


Measured: TypeAlias = Metric | Fit
"""What one micro-batch measured: a metric, or the sums from which the step's explained variance is worked out."""


class Loss(Protocol):
    """What a step minimises."""

    has_kl: bool
    """Whether the loss has a KL term, so that `reference_BT` must be given."""

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
    ) -> tuple[Tensor, Mapping[str, Measured]]:
        """Loss and metrics of a micro-batch, from its log-probs, the reference's (B, T), and the denominators."""
        ...


def is_plain(machine: TrainerSection) -> bool:
    """Whether the model stays what it was but for its weights, so that an engine can generate with it in between."""
    return processes.count() == 1 and machine.lora is None and not machine.compile


class Trainer:
    """AdamW over the whole model, one optimizer step a call.

    The optimizer's state and its step count live beside the checkpoint and carry over from round to round, but not
    with adapters, which start anew on the weights that the last ones were added to. A frozen `reference` gives the
    log-probs that a KL term compares with; without one it is the model without its adapters. `critic_from` gives the
    model a critic: the one in that folder, which carries over with its own optimizer state, or a fresh one; it learns
    at `critic_rate` times the learning rate.
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
        critic_from: Path | None = None,
        critic_rate: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.vlm = vlm
        self.section = section
        self.machine = machine or TrainerSection()
        self.temperature = temperature
        self.critic = None if critic_from is None else open_critic(critic_from, vlm)
        self._fresh_critic = critic_from is not None and not has_learned_critic(critic_from)
        self.reader = LogprobReader(vlm, self.critic)
        self.adapters = prepare_weights(vlm, self.machine, derive_seed(seed, Purpose.ADAPTERS))
        trained = [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": trained, "rate": 1.0}]
        if self.critic is not None:
            groups.append({"params": list(self.critic.parameters()), "rate": critic_rate})
        # On a GPU torch's other variants hold one more copy of the second moments while they step.
        fused = torch.cuda.is_available() or None
        adamw: Callable[..., torch.optim.Optimizer] = partial(torch.optim.AdamW, fused=fused)
        if self.machine.optimizer_bits is not None:
            groups, adamw = in_eight_bits(groups, vlm.model.get_input_embeddings().weight), adamw_in_eight_bits()
        optimizer = adamw(groups, lr=section.learning_rate, weight_decay=section.weight_decay)
        self._made_up = made_up_group(vlm)
        self.parallel = parallel(self.reader.module, optimizer)
        self.reader.module, self.optimizer = self.parallel.module, self.parallel.optimizer
        self.reference = None if reference is None else LogprobReader(reference)
        if self.reference is not None:
            self.reference.module = self.parallel.frozen(self.reference.module)
        self.steps_done = 0
        self.steps_skipped = 0
        """Those of them whose loss or gradient was not finite."""
        if resume_from is not None and self.adapters is None and (resume_from / OPTIMIZER_STATE).is_file():
            self.steps_done = load_optimizer_state(resume_from / OPTIMIZER_STATE, vlm.model, self.parallel)
        if self.critic is not None and critic_from is not None and (critic_from / CRITIC / OPTIMIZER_STATE).is_file():
            load_optimizer_state(critic_from / CRITIC / OPTIMIZER_STATE, self.critic, self.parallel)
        self._steps_before = self.steps_done

    def begin_again(self) -> None:
        """Start the next round: keep weights and optimizer state, count `steps_of_run` and skipped steps from 0.

        The trainer then does what one would do that was opened on this one's saved output.
        """
        self._steps_before, self.steps_skipped = self.steps_done, 0

    @property
    def steps_of_run(self) -> int:
        """Steps since it was opened, those before an interruption included."""
        return self.steps_done - self._steps_before

    def step(self, rows: Sequence[TrainingRow], loss_function: Loss, totals: Totals | None = None) -> dict[str, float]:
        """One optimizer step over `rows`, in micro-batches whose losses add up to the whole batch's.

        `totals` are the denominators where they differ from those of `rows`: rows that are known to have no
        gradient may be left out of the work but count. Where loss or gradient is not finite, the weights stay as they
        are. Returns the step's metrics.

        Raises:
            ModelError: the gradient is not finite, and the weights have already been changed by it (ZeRO-3).
        """
        totals = totals or totals_of(rows)
        work = _Work(self, rows, loss_function, totals)
        self.vlm.model.train()
        self._set_learning_rate()
        self.optimizer.zero_grad()
        metrics = work.run()
        grad_norm = self.parallel.clip(self.section.max_grad_norm).item()
        self.steps_done += 1
        finite = math.isfinite(metrics["loss"]) and math.isfinite(grad_norm)
        if finite:
            self.optimizer.step()
        elif not self.parallel.steps_apart:
            raise ModelError(
                f"optimizer step {self.steps_done}: loss {metrics['loss']}, gradient norm {grad_norm}; lower "
                "the learning rate"
            )
        self.steps_skipped += not finite
        self.vlm.model.eval()
        return metrics | {
            "skipped": float(not finite),
            "grad_norm": grad_norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def passes(self, readings: Sequence[Reading]) -> list[list[int]]:
        """Indices of the readings in each micro-batch of this process's share.

        Micro-batches are made smaller until every process has one, unless there are too few readings. Where processes
        run in step, empty ones fill this share up to the length of the longest.
        """
        units = len(inseparable(readings, range(len(readings))))
        budget, enough = self.machine.tokens_per_micro_batch, min(processes.count(), units)
        batches = list(self.reader.micro_batches(readings, budget))
        while len(batches) < enough:
            budget //= 2
            batches = list(self.reader.micro_batches(readings, budget))
        share = list(processes.own(batches))
        missing = -(-len(batches) // processes.count()) - len(share)
        return share + [[]] * (missing if self.parallel.in_step else 0)

    def fillers(self, readings: Sequence[Reading]) -> list[Reading]:
        """A made-up reading with an image, to be added to a pass of `readings` that has none; else nothing.

        It is needed where processes run in step: a pass without an image would skip the vision tower.
        """
        if self.parallel.in_step and not any(reading.prompt.vision for reading in readings):
            return self._made_up[:1]
        return []

    @torch.no_grad()
    def reference_logprobs(self, readings: Sequence[Reading], layout: Layout) -> Tensor:
        """What a KL compares with, (B, T).

        Raises:
            ValueError: the trainer has neither a reference nor adapters to leave out.
        """
        if self.reference is not None:
            return self.reference.read(readings, temperature=self.temperature, layout=layout).logprobs_BT
        if self.adapters is None:
            raise ValueError("the loss has a KL; give the trainer a reference")
        with self.adapters.disable_adapter():
            return self.reader.read(readings, temperature=self.temperature, layout=layout).logprobs_BT

    def start_critic(self, rewards: Sequence[float]) -> None:
        """A fresh critic's values start at the mean of these, one a response; one that has learned stays as it is."""
        if self.critic is not None and self._fresh_critic and rewards:
            self.critic.center.fill_(sum(rewards) / len(rewards))
            self._fresh_critic = False

    @torch.no_grad()
    def with_old_logprobs(self, rows: Sequence[TrainingRow], loss_function: Loss | None = None) -> list[TrainingRow]:
        """The rows with the model's present log-probs and values as their old ones, in the numerics of training.

        With the loss of the step that these rows are, they are read in that step's own passes, so that at these weights
        every ratio is 1: what rounds otherwise in other company does so here too. Tokens that it does not read keep the
        log-probs that they have.
        """
        readings = [loss_function.reading(row) if loss_function else Reading(row.prompt, row.ids) for row in rows]
        scored: list[tuple[int, TrainingRow]] = []
        for members in self.passes(readings):
            some = [readings[i] for i in members]
            read = self.reader.read([*some, *self.fillers(some)], temperature=self.temperature)
            logprobs, values = read.logprobs_BT.tolist(), read.values_BT.tolist()
            for i, logprobs_T, values_T in zip(members, logprobs, values, strict=False):
                scored.append((i, _with_old(rows[i], readings[i], logprobs_T, values_T)))
        by_index = dict(processes.gather(scored))
        return [by_index[i] for i in range(len(rows))]

    def save(self, folder: Path, model_folder: Path) -> None:
        """Write the checkpoint to `model_folder`; to `folder` the critic, and the optimizer's state or the adapters.

        With them come the float32 weights that the checkpoint holds rounded, so that training goes on from what it was.
        """
        state = plain_state(self.vlm, self.parallel)
        self._write_model(model_folder, state)
        masters = masters_of(self.vlm, state)
        with writing(folder):
            if self.critic is not None:
                save_critic(self.critic, self.parallel, folder)
                save_optimizer_state(folder / CRITIC / OPTIMIZER_STATE, self.critic, self.parallel, self.steps_done)
            if self.adapters is not None:
                save_adapters(self.adapters, self.parallel, folder / ADAPTERS)
                if masters:
                    save_masters(folder / OPTIMIZER_STATE, masters)
            else:
                save_optimizer_state(folder / OPTIMIZER_STATE, self.vlm.model, self.parallel, self.steps_done, masters)

    def save_state(self, folder: Path) -> None:
        """Write all that an interrupted run needs to go on as if nothing had happened; every process has to ask."""
        for name, module in self._modules():
            if processes.is_main():
                (folder / name).mkdir(exist_ok=True)
            save_trained(folder / name / TRAINED, module, self.parallel)
            save_optimizer_state(folder / name / OPTIMIZER_STATE, module, self.parallel, self.steps_done)
        if processes.is_main():
            (folder / COUNTERS).write_text(json.dumps([self.steps_skipped, self._fresh_critic]))
        save_file(_random_state(), folder / _random_file())

    def load_state(self, folder: Path) -> None:
        """Put back what `save_state` wrote of a trainer that was opened alike."""
        for name, module in self._modules():
            load_trained(folder / name / TRAINED, module, self.parallel)
            self.steps_done = load_optimizer_state(folder / name / OPTIMIZER_STATE, module, self.parallel)
        self.steps_skipped, self._fresh_critic = json.loads((folder / COUNTERS).read_text())
        random = load_file(folder / _random_file())
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])

    def save_weights(self, folder: Path) -> None:
        """Write the checkpoint alone; every process has to ask."""
        self._write_model(folder, plain_state(self.vlm, self.parallel))

    def _write_model(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        if processes.is_main():
            with writing(folder):
                self.vlm.save(folder, state)

    def _modules(self) -> list[tuple[str, nn.Module]]:
        return [("", self.vlm.model), *([] if self.critic is None else [(CRITIC, self.critic)])]

    def _set_learning_rate(self) -> None:
        warm = min(1.0, (self.steps_done + 1) / max(self.section.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.section.learning_rate * warm * group["rate"]


class _Work:
    """Forward and backward passes of one optimizer step, and what they measured in all processes."""

    def __init__(self, trainer: Trainer, rows: Sequence[TrainingRow], loss_function: Loss, totals: Totals) -> None:
        self.trainer = trainer
        self.rows = rows
        self.loss_function = loss_function
        self.totals = totals
        self.measured: list[tuple[str, Measured]] = []

    def run(self) -> dict[str, float]:
        """Leave the gradient in the parameters; return the step's metrics."""
        started = time.perf_counter()
        readings = [self.loss_function.reading(row) for row in self.rows]
        passes = self.trainer.passes(readings)
        for number, members in enumerate(passes, start=1):
            self._pass([self.rows[i] for i in members], [readings[i] for i in members], last=number == len(passes))
        parts: dict[str, list[Any]] = defaultdict(list)
        for name, metric in processes.gather(self.measured):
            parts[name].append(metric)
        sums = {name: float(sum(part.value for part in parts.pop(name, []))) for name in ("loss", "tokens", "slots")}
        return {name: _combine(name, values) for name, values in parts.items()} | {
            "loss": sums["loss"],
            "padding_share": 1 - sums["tokens"] / max(sums["slots"], 1),
            "tokens_per_second": sums["tokens"] / (time.perf_counter() - started),
            "peak_memory_gib": _peak_memory_gib(),
        }

    def _pass(self, rows: Sequence[TrainingRow], readings: Sequence[Reading], *, last: bool) -> None:
        reader, temperature = self.trainer.reader, self.trainer.temperature
        readings = [*readings, *self.trainer.fillers(readings)]
        layout = reader.layout(readings)
        reference_BT = self.trainer.reference_logprobs(readings, layout) if self.loss_function.has_kl else None
        logprobs = reader.read(readings, temperature=temperature, layout=layout)
        filler_loss = 0 * (logprobs.logprobs_BT[len(rows) :].sum() + logprobs.values_BT[len(rows) :].sum())
        metrics: Mapping[str, Measured] = {}
        loss = filler_loss
        if rows:
            own = ResponseLogprobs(*(values_BT[: len(rows)] for values_BT in logprobs))
            loss, metrics = self.loss_function(rows, own, reference_BT, self.totals)
        self.trainer.parallel.backward(loss + filler_loss, last=last)
        sums: dict[str, float | Tensor] = {"loss": loss, "tokens": layout.tokens, "slots": layout.slots}
        self.measured += _fetched([*metrics.items(), *((name, Metric(value, 1)) for name, value in sums.items())])


def _fetched(measured: Sequence[tuple[str, Measured]]) -> list[tuple[str, Measured]]:
    """With numbers for the scalars on the device, which come in one copy: only that waits for it."""
    waiting = [
        metric.value for _, metric in measured if isinstance(metric, Metric) and isinstance(metric.value, Tensor)
    ]
    numbers: Iterator[float] = iter(torch.stack([value.detach().double() for value in waiting]).tolist())
    return [
        (name, Metric(next(numbers), metric.weight))
        if isinstance(metric, Metric) and isinstance(metric.value, Tensor)
        else (name, metric)
        for name, metric in measured
    ]


def _with_old(
    row: TrainingRow, reading: Reading, logprobs_T: Sequence[float], values_T: Sequence[float]
) -> TrainingRow:
    """The row with old log-probs where they were read; what was read may be padded."""
    old_T = list(row.old_logprobs_T) or [0.0] * len(row.ids)
    for token in reading.tokens_read.tolist():
        old_T[token] = logprobs_T[token]
    return replace(row, old_logprobs_T=old_T, values_T=values_T[: len(row.ids)])


def _random_file() -> str:
    """Each process's own."""
    return f"random-{processes.index()}.safetensors"


def _random_state() -> dict[str, Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state()} | cuda


def _peak_memory_gib() -> float:
    """The largest so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def totals_of(rows: Sequence[TrainingRow]) -> Totals:
    return Totals(len(rows), sum(len(row.ids) for row in rows))


def _combine(name: str, parts: Sequence[Any]) -> float:
    """The step's value: the largest of a maximum, what sums tell, else the weighted mean."""
    if isinstance(parts[0], Fit):
        return explained_variance(parts)
    if name.startswith("ratio_max"):
        return max(part.value for part in parts)
    return sum(part.value * part.weight for part in parts) / max(sum(part.weight for part in parts), 1)
