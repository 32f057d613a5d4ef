"""Log-probs of response tokens under a model, of the very distribution that is sampled.

Axes: B responses, T tokens of the longest, N tokens that are read, U different ones of them, H hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stages.artifacts.problems import Problem
from stages.errors import ModelError
from stages.model.batches import encode_prompt
from stages.model.codec import Codec
from stages.model.critic import ValueHead
from stages.model.head import sampled_logits, token_divergences, token_logprobs
from stages.model.layout import (
    Layout,
    Reading,
    packed_layout,
    packed_micro_batches,
    padded_layout,
    padded_micro_batches,
)
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import Prompt, policy_prompt
from stages.model.tree_attention import takes_trees
from stages.sections import PromptSection

logger = logging.getLogger(__name__)

CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Mean difference in log-prob between two ways to read the same tokens that counts as rounding in any model."""
ROUNDING_FACTOR = 4.0
"""Rounding grows with depth and width: so many times the difference between two paddings of plain rows counts too."""


class ResponseLogprobs(NamedTuple):
    """All (B, T); but for the last float32, and 0 where a token is not read or there is none."""

    logprobs_BT: Tensor
    entropy_BT: Tensor
    """Entropy in nats of the distribution at each token, without gradient."""
    values_BT: Tensor
    """The critic's value before each token; 0 without a critic."""
    read_BT: Tensor
    """Bool."""


class TokenLogprobs(nn.Module):
    """The model as a training framework wraps it: from a layout to the log-probs of the tokens that it reads.

    PPO's critic is a part of it.
    """

    def __init__(self, vlm: VisionLanguageModel, critic: ValueHead | None = None) -> None:
        super().__init__()
        self.model = vlm.model
        self.critic = critic
        self.banned_ids = vlm.banned_ids
        self.precision = vlm.precision
        # Which modules a framework shards as one.
        self._no_split_modules = vlm.model._no_split_modules

    def forward(self, layout: Layout, temperature: float, other: Layout | None = None) -> tuple[Tensor, ...]:
        """Log-probs, entropies and values of the tokens that are read, all (N,).

        With `other`, the same responses behind other prompts, the KL(own || other) before each of them too.
        """
        with self.precision():
            hidden_NH = self._hidden(layout)
            logprobs_U, entropy_U = self._read(hidden_NH, layout, temperature)
            divergences = [] if other is None else [self._divergences(hidden_NH, layout, other, temperature)]
        values_U = torch.zeros_like(entropy_U) if self.critic is None else self.critic(hidden_NH[layout.source_U])
        return logprobs_U[layout.where_N], entropy_U[layout.where_N], values_U[layout.where_N], *divergences

    def _hidden(self, layout: Layout) -> Tensor:
        states: Tensor = self.model.base_model(**layout.inputs, use_cache=False).last_hidden_state
        return states.flatten(0, 1)

    def _divergences(self, hidden_NH: Tensor, layout: Layout, other: Layout, temperature: float) -> Tensor:
        head = self.model.get_output_embeddings()
        return token_divergences(
            hidden_NH[layout.source_U[layout.where_N]],
            self._hidden(other)[other.source_U[other.where_N]],
            head.weight,
            head.bias,
            banned_ids=self.banned_ids,
            temperature=temperature,
        )

    def _read(self, hidden_NH: Tensor, layout: Layout, temperature: float) -> tuple[Tensor, Tensor]:
        source_U, target_U = layout.source_U, layout.target_U
        if layout.graph_U.all():
            return self._head(hidden_NH[source_U], target_U, temperature)
        logprobs_U, entropy_U = torch.zeros((2, len(source_U)), device=source_U.device)
        for part_U, gradient in ((layout.graph_U, torch.is_grad_enabled()), (~layout.graph_U, False)):
            where_P = places(part_U, source_U.device)
            with torch.set_grad_enabled(gradient):
                logprobs_P, entropy_P = self._head(hidden_NH[source_U[where_P]], target_U[where_P], temperature)
            logprobs_U = logprobs_U.index_copy(0, where_P, logprobs_P)
            entropy_U = entropy_U.index_copy(0, where_P, entropy_P)
        return logprobs_U, entropy_U

    def _head(self, hidden_UH: Tensor, target_U: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        head = self.model.get_output_embeddings()
        return token_logprobs(
            hidden_UH,
            head.weight,
            head.bias,
            target_U,
            banned_ids=self.banned_ids,
            temperature=temperature,
        )


class LogprobReader:
    """Reads log-probs of responses in as few tokens as the architecture allows.

    Packed rows where a check on a made-up group finds them equal to plain rows, else plain rows.
    """

    def __init__(self, vlm: VisionLanguageModel, critic: ValueHead | None = None) -> None:
        """Raises ModelError where the model's logits are not its head's output, and as `check_mixed_rows`."""
        check_mixed_rows(vlm)
        self.vlm = vlm
        self.module: nn.Module = TokenLogprobs(vlm, critic)
        check = _Check(vlm)
        check.head()
        self.packed = check.packing()

    def micro_batches(self, readings: Sequence[Reading], token_budget: int) -> Iterator[list[int]]:
        """Indices of readings that fit one pass of about `token_budget` tokens, padding included."""
        if self.packed:
            return packed_micro_batches(readings, token_budget)
        return padded_micro_batches(readings, token_budget)

    def layout(self, readings: Sequence[Reading]) -> Layout:
        return packed_layout(self.vlm, readings) if self.packed else padded_layout(self.vlm, readings)

    def read(
        self, readings: Sequence[Reading], *, temperature: float, layout: Layout | None = None
    ) -> ResponseLogprobs:
        """Teacher-forced log-probs at `temperature`; `layout` is that of the readings where it is at hand."""
        return _read(self.module, readings, layout or self.layout(readings), temperature)

    @torch.no_grad()
    def read_against(
        self, readings: Sequence[Reading], others: Sequence[Reading], *, temperature: float
    ) -> tuple[ResponseLogprobs, Tensor]:
        """The same, and in nats KL(own || other) before each token, (B, T); `others` read it behind other prompts."""
        values = self.module(self.layout(readings), temperature, self.layout(others))
        *read, read_BT = _by_response(values, readings)
        logprobs_BT, entropy_BT, values_BT, divergences_BT = read
        return ResponseLogprobs(logprobs_BT, entropy_BT, values_BT, read_BT), divergences_BT


@dataclass(frozen=True)
class PlainReading:
    """Log-probs from padded rows, which a check compares with those that packed rows or our decoding loop give."""

    logprobs_N: Tensor
    """Log-prob in nats of every token, response by response, at temperature 1 and without autocast (`vlm.exact()`)."""
    tolerance: float
    """Largest mean absolute difference, in nats, that counts as rounding."""

    def difference(self, logprobs_N: Tensor) -> float:
        """Mean absolute difference between `logprobs_N`, of the same tokens, and these, in nats."""
        return _mean_difference(self.logprobs_N, logprobs_N)


@torch.no_grad()
def plain_reading(vlm: VisionLanguageModel, readings: Sequence[Reading]) -> PlainReading:
    """Read the responses in padded rows, and measure how much rounding moves their log-probs in this model.

    They are read twice, in one batch and one by one. The two differ in padding alone, so by rounding:
    `ROUNDING_FACTOR` times that difference is tolerated, and `CHECK_TOLERANCE` at least.
    """
    exact = vlm.exact()
    together_N, alone_N = _together_and_alone(exact, readings)
    rounding = ROUNDING_FACTOR * _mean_difference(together_N, alone_N)
    return PlainReading(together_N, max(CHECK_TOLERANCE[exact.autocast_dtype or vlm.model.dtype], rounding))


@torch.no_grad()
def check_mixed_rows(vlm: VisionLanguageModel) -> None:
    """Refuse a model that reads a row otherwise where longer rows, with other images or none, are beside it.

    Rows and images are filled up to one size, and not every model leaves out what was filled up.

    Raises:
        ModelError: it is no rounding.
    """
    tolerance = plain_reading(vlm, made_up_group(vlm)).tolerance
    apart = _mean_difference(*_together_and_alone(vlm.exact(), _mixed_rows(vlm)))
    if apart > tolerance:
        raise ModelError(
            f"{vlm.model.name_or_path}: log-probs of a row are off by {apart:.2g} where longer rows and other images "
            "are beside it; take another model"
        )


def _together_and_alone(vlm: VisionLanguageModel, readings: Sequence[Reading]) -> tuple[Tensor, Tensor]:
    """Log-probs (N,) from one batch of padded rows, and from a batch for each row."""
    module = TokenLogprobs(vlm)
    alone = [_every_token(module, [one], padded_layout(vlm, [one])) for one in readings]
    return _every_token(module, readings, padded_layout(vlm, readings)), torch.cat(alone)


def _mean_difference(one_N: Tensor, other_N: Tensor) -> float:
    return (one_N - other_N).abs().mean().item()


def _every_token(module: nn.Module, readings: Sequence[Reading], layout: Layout) -> Tensor:
    """Log-probs (N,) at temperature 1, reading by reading."""
    read = _read(module, readings, layout, 1.0)
    return read.logprobs_BT[read.read_BT]


def _read(module: nn.Module, readings: Sequence[Reading], layout: Layout, temperature: float) -> ResponseLogprobs:
    return ResponseLogprobs(*_by_response(module(layout, temperature), readings))


def _tokens_read(readings: Sequence[Reading]) -> Tensor:
    """Bool (B, T), on the CPU."""
    read_BT = torch.zeros(len(readings), max(len(r.ids) for r in readings), dtype=torch.bool)
    for row, reading in enumerate(readings):
        read_BT[row, torch.from_numpy(reading.tokens_read)] = True
    return read_BT


def _by_response(values: Sequence[Tensor], readings: Sequence[Reading]) -> list[Tensor]:
    """Each of the values (N,) as (B, T), and which tokens are read."""
    read_BT, device = _tokens_read(readings), values[0].device
    where_N = places(read_BT.flatten(), device)
    zeros = torch.zeros(read_BT.numel(), device=device)
    by_response = [zeros.index_copy(0, where_N, read_N).view(read_BT.shape) for read_N in values]
    return [*by_response, read_BT.to(device, non_blocking=True)]


def places(flags_N: Tensor, device: torch.device) -> Tensor:
    """Where flags on the CPU are set, as indices on the device.

    On a device, to be indexed by flags waits for it to count them, forward or backward; so does a blocking copy.
    """
    return flags_N.nonzero()[:, 0].to(device, non_blocking=True)


class _Check:
    """Compares ways to read the same log-probs of a made-up group, in `vlm.exact()`."""

    def __init__(self, vlm: VisionLanguageModel) -> None:
        self.vlm = vlm.exact()
        self.module = TokenLogprobs(self.vlm)
        self.readings = made_up_group(vlm)
        self.plain = plain_reading(self.vlm, self.readings)

    @torch.no_grad()
    def head(self) -> None:
        """Refuse a model whose logits are more than its head's output."""
        layout = padded_layout(self.vlm, self.readings[:1])
        with self.vlm.precision():
            logits_UV = self.vlm.model(**layout.inputs, use_cache=False).logits[0, layout.source_U]
        logprobs_UV = sampled_logits(logits_UV, self.vlm.banned_ids, 1.0).log_softmax(-1)
        model_T = logprobs_UV.gather(-1, layout.target_U[:, None])[layout.where_N, 0]
        own_T = _every_token(self.module, self.readings[:1], layout)
        if _mean_difference(model_T, own_T) > self.plain.tolerance:
            raise ModelError(
                f"{self.vlm.model.name_or_path}: this architecture changes its logits after the head (soft-capping or "
                "scaling), which log-probs are not made for; take another model"
            )

    @torch.no_grad()
    def packing(self) -> bool:
        """Whether packed rows give the log-probs of plain rows."""
        architecture = type(self.vlm.model).__name__
        if not takes_trees(self.vlm.model):
            logger.info("%s: plain rows, its attention takes no packed ones", architecture)
            return False
        layout = packed_layout(self.vlm, self.readings)
        difference = self.plain.difference(_every_token(self.module, self.readings, layout))
        if difference > self.plain.tolerance:
            logger.warning("%s: plain rows, packed ones are off by %.2g", architecture, difference)
        return difference <= self.plain.tolerance


def made_up_prompt(codec: Codec) -> Prompt:
    """A question about a noisy image."""
    return _asked_about(codec, (112, 112))


def made_up_group(vlm: VisionLanguageModel) -> list[Reading]:
    """Three responses of unequal lengths, two with a common beginning, to a made-up prompt."""
    prompt = encode_prompt(vlm, made_up_prompt(vlm))
    beginning, *endings = _made_up_ids(vlm, (5, 7, 3, 9))
    return [Reading(prompt, ids) for ids in (beginning + endings[0], beginning + endings[1], endings[2])]


def _mixed_rows(vlm: VisionLanguageModel) -> list[Reading]:
    """Responses to prompts without an image, with one, with another one, and with two of unequal sizes."""
    shown = [(), ((112, 112),), ((64, 140),), ((84, 56), (70, 120))]
    prompts = [encode_prompt(vlm, _asked_about(vlm, *sizes)) for sizes in shown]
    return [Reading(prompt, ids) for prompt, ids in zip(prompts, _made_up_ids(vlm, (6, 3, 8, 5)), strict=True)]


def _asked_about(codec: Codec, *sizes: tuple[int, int]) -> Prompt:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    problem = Problem.asking("What is seen here?", [Image.fromarray(pixels_HWC) for pixels_HWC in pixels])
    return policy_prompt(codec.processor, PromptSection(), problem)


def _made_up_ids(vlm: VisionLanguageModel, lengths: Sequence[int]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    # An image's token has no place in a response, whether it may be sampled or not.
    allowed = np.setdiff1d(np.arange(len(vlm.tokenizer)), [*vlm.banned_ids, *vlm.tokenizer.all_special_ids])
    return [rng.choice(allowed, length).tolist() for length in lengths]
