"""What every side of the benchmark works on: one group of trajectories to one prompt, half errors, half repairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from tiny_vlm import SPECIAL, VOCABULARY, random_image, tiny_model, tiny_processor
from torch import Tensor

from stages.core.advantages import group_advantages
from stages.core.alignment import difference_masks
from stages.model.batches import EncodedPrompt, encode_prompt
from stages.model.loading import VisionLanguageModel, wrap_model
from stages.model.prompts import Prompt
from stages.model.window_attention import use_window_attention
from stages.training.trainer import TrainingRow

SEED = 27482
TEMPERATURE = 0.7
CLIP = 0.2
LEARNING_RATE = 1e-6
MAX_GRAD_NORM = 1.0
NO_CLIP = 1e9
EDITED_SHARE = 0.08
OLD_LOGPROB_NOISE = 0.05
"""Deviation of the old log-probs from the model's own: the policy has moved a little since it sampled."""


class Shape(NamedTuple):
    """Tokens of a prompt, how many of them are visual (columns x rows), and of its responses."""

    prompt: int
    grid: tuple[int, int] | None
    shortest: int
    longest: int


SHAPES = {"visual": Shape(1200, (40, 25), 240, 300), "text": Shape(200, None, 800, 1000)}


class Maker(Protocol):
    """Makes the same model each time it is asked."""

    device: str
    bfloat16: bool
    """Whether its float32 weights compute in bfloat16."""

    def model(self) -> Any:
        """transformers' own model."""

    def processor(self) -> Any:
        """Its processor."""

    def vlm(self) -> VisionLanguageModel:
        """The project's wrapping of a model of its own."""


@dataclass(frozen=True)
class Tiny:
    """13 million parameters, on the CPU."""

    device: str = "cpu"
    bfloat16: bool = False

    def model(self) -> Any:
        model = tiny_model(SEED)
        use_window_attention(model)  # on every side, as on a GPU
        return model

    def processor(self) -> Any:
        return tiny_processor()

    def vlm(self) -> VisionLanguageModel:
        return wrap_model(self.model(), self.processor())


@dataclass(frozen=True)
class Case:
    """One group. `rows` have gates, and share one prompt; the model is made anew for each side."""

    prompt: EncodedPrompt
    rows: Sequence[TrainingRow]
    maker: Maker = Tiny()
    max_grad_norm: float = MAX_GRAD_NORM
    ban_ids: bool = True
    """Image and vision-boundary tokens have probability 0; TRL has no such thing."""

    @property
    def ungated_rows(self) -> list[TrainingRow]:
        return [replace(row, gate_T=None) for row in self.rows]

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)

    @property
    def open_share(self) -> float:
        """Share of the response tokens whose gate is open."""
        return sum(sum(row.gate_T or ()) for row in self.rows) / self.tokens

    def model(self) -> Any:
        """transformers' own model."""
        return self.maker.model()

    def vlm(self) -> VisionLanguageModel:
        """The project's wrapping of a model of its own."""
        vlm = self.maker.vlm()
        return vlm if self.ban_ids else replace(vlm, banned_ids=())

    def banned_ids(self) -> tuple[int, ...]:
        return self.vlm().banned_ids

    def save(self, path: Path) -> None:
        torch.save(self, path)

    @staticmethod
    def load(path: Path) -> Case:
        return torch.load(path, weights_only=False)


def make_case(shape: Shape, group: int, maker: Maker = Tiny()) -> Case:
    """A group of `group` trajectories, the same ones each time."""
    rng = np.random.default_rng(SEED)
    vlm = maker.vlm()
    prompt = encode_prompt(vlm, _prompt(shape, rng))
    rewards = [0.0] * (group // 2) + [1.0] * (group // 2)
    worse, *_, better = group_advantages(rewards).tolist()
    rows = []
    for _ in range(group // 2):
        (error, error_gate), (repair, repair_gate) = _pair(shape, rng)
        rows.append(TrainingRow(prompt, error, "error", worse, error_gate))
        rows.append(TrainingRow(prompt, repair, "repair", better, repair_gate))
    return Case(prompt, _with_old_logprobs(vlm, rows, rng), maker)


def independent(case: Case) -> Case:
    """The same prompt, advantages and lengths without gates; no two responses begin alike, as rollouts do."""
    rng = np.random.default_rng(SEED)
    end = SPECIAL.index("<|im_end|>")
    rows = [replace(row, ids=[*_tokens(len(row.ids) - 1, rng), end]) for row in case.ungated_rows]
    return replace(case, rows=_with_old_logprobs(case.vlm(), rows, rng))


def plain_logprobs(model: Any, row: TrainingRow, banned_ids: Sequence[int]) -> Tensor:
    """Log-probs of a response's tokens from one plain row, with nothing shared, packed, padded or left out."""
    ids = torch.tensor([[*row.prompt.ids, *row.ids]], device=model.device)
    types = torch.tensor([row.prompt.token_types + [0] * len(row.ids)], device=model.device)
    vision = {name: value.to(model.device) for name, value in row.prompt.vision.items()}
    output = model(input_ids=ids, mm_token_type_ids=types, use_cache=False, **vision)
    logits_TV = output.logits[0, -len(row.ids) - 1 : -1].float() / TEMPERATURE
    logits_TV[:, list(banned_ids)] = float("-inf")
    return logits_TV.log_softmax(-1).gather(-1, ids[0, -len(row.ids) :, None]).squeeze(-1)


def grpo_term(logprobs_T: Tensor, row: TrainingRow) -> Tensor:
    """A response's term of GRPO's loss, written out: clipped surrogate, mean over its tokens."""
    ratio_T = torch.exp(logprobs_T - logprobs_T.new_tensor(row.old_logprobs_T))
    advantage_T = row.advantage * logprobs_T.new_tensor(row.gate_T or [1.0] * len(row.ids))
    return -torch.minimum(ratio_T * advantage_T, ratio_T.clamp(1 - CLIP, 1 + CLIP) * advantage_T).mean()


def _prompt(shape: Shape, rng: np.random.Generator) -> Prompt:
    if shape.grid is None:
        return Prompt(_words(shape.prompt, rng), ())
    columns, rows = shape.grid
    text = _words(shape.prompt - columns * rows - 2, rng)
    image = random_image(columns, rows, rng)
    return Prompt(f"<|vision_start|><|image_pad|><|vision_end|> {text}", (image,))


def _words(count: int, rng: np.random.Generator) -> str:
    return " ".join(f"w{index}" for index in _tokens(count, rng))


def _tokens(count: int, rng: np.random.Generator) -> list[int]:
    return rng.integers(len(SPECIAL), VOCABULARY, count).tolist()


def _pair(shape: Shape, rng: np.random.Generator) -> list[tuple[list[int], list[float]]]:
    """An error and its repair, each with its gate: two or three edited spans, uniformly placed."""
    end = SPECIAL.index("<|im_end|>")
    error = _tokens(int(rng.integers(shape.shortest, shape.longest + 1)) - 1, rng)
    spans, edited = int(rng.integers(2, 4)), round(EDITED_SHARE * len(error))
    lengths = rng.multinomial(edited - spans, [1 / spans] * spans) + 1
    starts = np.sort(rng.integers(0, len(error) - edited + 1, spans)) + np.concatenate([[0], lengths.cumsum()[:-1]])
    repair, copied = [], 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        repair += error[copied:start] + _tokens(max(1, length + int(rng.integers(-2, 3))), rng)
        copied = start + length
    error, repair = [*error, end], [*repair, *error[copied:], end]
    masks = difference_masks(error, repair)
    return [(error, masks.error_T.astype(float).tolist()), (repair, masks.repair_T.astype(float).tolist())]


@torch.no_grad()
def _with_old_logprobs(
    vlm: VisionLanguageModel, rows: Sequence[TrainingRow], rng: np.random.Generator
) -> list[TrainingRow]:
    near = []
    for row in rows:
        with vlm.precision():
            own_T = plain_logprobs(vlm.model, row, vlm.banned_ids).cpu().numpy()
        old_T = own_T + rng.normal(0, OLD_LOGPROB_NOISE, len(own_T)).astype(np.float32)
        near.append(replace(row, old_logprobs_T=old_T.tolist()))
    return near
