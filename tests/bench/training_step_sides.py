"""The benchmark's sides: each makes one optimizer step over the same trajectories, in its own way.

Those that put a group into one row are in `training_step_one_row`.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import trl.trainer.utils
from datasets import Dataset
from torch import Tensor
from training_step_case import CLIP, LEARNING_RATE, TEMPERATURE, Case, grpo_term, plain_logprobs
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from stages.model.batches import response_batch
from stages.sections import ObjectiveSection, OptimizerSection, RolloutSection, TrainerSection
from stages.training.groups import rows_to_work_on
from stages.training.losses import PolicyObjective
from stages.training.trainer import Trainer, TrainingRow

VISION = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
"""What TRL's forward pass takes beside tokens and mask."""
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

    def __init__(self, case: Case, rows_at_once: int, *, gated: bool, checkpointing: bool = False) -> None:
        vlm = case.vlm()
        section = OptimizerSection(learning_rate=LEARNING_RATE, max_grad_norm=case.max_grad_norm)
        tokens = len(case.prompt.ids) + rows_at_once * max(len(row.ids) for row in case.rows)
        machine = TrainerSection(tokens_per_micro_batch=tokens, gradient_checkpointing=checkpointing)
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


class PreparedGRPOTrainer(GRPOTrainer):
    """TRL's trainer fed with micro-batches that are already made; generation is not part of the step."""

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        return generation_batch


class Trl:
    """What the training loop of TRL's `GRPOTrainer` calls in one optimizer step; its callbacks and logs are left out.

    With `compact_head` its head reads the response positions alone, as it does on a GPU; on a CPU it reads all.
    """

    def __init__(
        self, case: Case, rows_at_once: int, *, checkpointing: bool = False, compact_head: bool = False
    ) -> None:
        self.trainer = _trl_trainer(case, rows_at_once, checkpointing)
        self.micro_batches = [
            {name: value.to(case.maker.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            for batch in _trl_micro_batches(case, len(case.rows) // rows_at_once)
        ]
        self.trainer.current_gradient_accumulation_steps = len(self.micro_batches)
        self.compact_head = compact_head
        if checkpointing:
            self.trainer.model.gradient_checkpointing_enable()
        self.model, _ = self.trainer._prepare_for_training(1, self.trainer.get_train_dataloader(), None)
        self.optimizer = self.trainer.optimizer
        self.lengths = [len(row.ids) for row in case.rows]

    def step(self) -> float:
        self._choose_head()
        self.model.zero_grad()
        loss = 0.0
        for left, micro_batch in zip(reversed(range(len(self.micro_batches))), self.micro_batches, strict=True):
            self.trainer.accelerator.gradient_state._set_sync_gradients(left == 0)
            loss += self.trainer.training_step(self.model, micro_batch, None).item()
        self.trainer._clip_grad_norm(self.model)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def old_logprobs(self) -> list[Tensor]:
        self._choose_head()
        self.model.eval()
        logprobs = [logprobs_T for batch in self.micro_batches for logprobs_T in self._logprobs(batch)]
        return [logprobs_T[:length] for logprobs_T, length in zip(logprobs, self.lengths, strict=True)]

    def _logprobs(self, batch: dict[str, Any]) -> Tensor:
        ids, mask = (
            torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], dim=1) for kind in ("ids", "mask")
        )
        vision = {name: batch[name] for name in VISION if name in batch}
        width = batch["completion_ids"].shape[1]
        return self.trainer._get_per_token_logps_and_entropies(self.model, ids, mask, width, **vision)[0]

    def _choose_head(self) -> None:
        trl.trainer.utils._use_triton = lambda _device: self.compact_head


class PlainLoop(ABC):
    """The step written out for `rows_at_once` responses at a time; how their log-probs are read is the side's."""

    def __init__(self, case: Case, rows_at_once: int) -> None:
        self.case, self.model, self.banned_ids = case, case.model(), list(case.banned_ids())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
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
        return [logprobs_T for rows in self.micro_batches for logprobs_T in self._logprobs(rows)]

    def _backward(self, rows: Sequence[TrainingRow]) -> float:
        terms = [grpo_term(logprobs_T, row) for logprobs_T, row in zip(self._logprobs(rows), rows, strict=True)]
        loss = torch.stack(terms).sum() / len(self.case.rows)
        loss.backward()
        return loss.item()

    @abstractmethod
    def _logprobs(self, rows: Sequence[TrainingRow]) -> list[Tensor]:
        """Of each row's tokens, (T,)."""


class FullLogits(PlainLoop):
    """Plain padded rows and the logits of every position, as EasyR1's actor does on padded rows."""

    def __init__(self, case: Case, rows_at_once: int) -> None:
        super().__init__(case, rows_at_once)
        self.vlm = case.vlm()

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


def _trl_trainer(case: Case, rows_at_once: int, checkpointing: bool) -> PreparedGRPOTrainer:
    arguments = GRPOConfig(
        output_dir=tempfile.gettempdir(),  # nothing is written
        use_cpu=case.maker.device == "cpu",
        bf16=case.maker.bfloat16,
        report_to="none",
        gradient_checkpointing=checkpointing,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=len(case.rows) // rows_at_once,
        num_generations=len(case.rows),
        max_completion_length=max(len(row.ids) for row in case.rows),
        loss_type="grpo",
        epsilon=CLIP,
        beta=0.0,
        temperature=TEMPERATURE,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        max_grad_norm=case.max_grad_norm,
    )
    return PreparedGRPOTrainer(
        case.model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w6"] * len(case.rows)}),
        processing_class=case.maker.processor(),
    )


def _trl_micro_batches(case: Case, count: int) -> list[dict[str, Any]]:
    """What `GRPOTrainer._generate_and_score_completions` returns, split by TRL itself; the image is repeated."""
    rows, prompt = case.rows, case.prompt
    lengths = torch.tensor([len(row.ids) for row in rows])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    pad = case.maker.processor().tokenizer.pad_token_id
    types = torch.tensor([prompt.token_types]).expand(len(rows), -1)
    batch: dict[str, Any] = {
        "prompt_ids": torch.tensor([prompt.ids]).repeat(len(rows), 1),
        "prompt_mask": torch.ones(len(rows), len(prompt.ids), dtype=torch.long),
        "completion_ids": _padded([row.ids for row in rows], pad),
        "completion_mask": mask,
        "advantages": torch.tensor([row.advantage for row in rows]),
        "old_per_token_logps": _padded([row.old_logprobs_T for row in rows], 0.0),
        "num_items_in_batch": mask.sum(),
    }
    if prompt.vision:
        batch |= {name: torch.cat([value] * len(rows)) for name, value in prompt.vision.items()}
        batch |= {"num_images": [1] * len(rows), "mm_token_type_ids": torch.cat([types, torch.zeros_like(mask)], dim=1)}
    return [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(split_pixel_values_by_grid(batch), count)]


def _padded(values: Sequence[Sequence[Any]], pad: float) -> Tensor:
    longest = max(len(value) for value in values)
    return torch.tensor([[*value, *[pad] * (longest - len(value))] for value in values])
