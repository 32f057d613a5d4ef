"""The benchmark's side that is TRL's own trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import trl.trainer.utils
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from training_step_case import CLIP, LEARNING_RATE, TEMPERATURE, Case
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from stages.sections import LoraSection

VISION = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
"""What TRL's forward pass takes beside tokens and mask."""

TEXT_LAYERS = r".*language_model\.layers\..*_proj"
"""Names of the linear layers that adapters are put on."""


class PreparedGRPOTrainer(GRPOTrainer):
    """TRL's trainer fed with micro-batches that are already made; generation is not part of the step."""

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        return generation_batch


class Trl:
    """What the training loop of TRL's `GRPOTrainer` calls in one optimizer step; its callbacks and logs are left out.

    With `compact_head` its head reads the response positions alone, as it does on a GPU; on a CPU it reads all.
    """

    def __init__(
        self,
        case: Case,
        rows_at_once: int,
        *,
        checkpointing: bool = False,
        compact_head: bool = False,
        lora: LoraSection | None = None,
    ) -> None:
        self.trainer = _trl_trainer(case, rows_at_once, checkpointing, lora)
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


def _trl_trainer(case: Case, rows_at_once: int, checkpointing: bool, lora: LoraSection | None) -> PreparedGRPOTrainer:
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
        peft_config=lora and LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=TEXT_LAYERS),
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
