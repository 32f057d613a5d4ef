"""transformers' own `generate` for models that our loop does not take; the same draws, so the same responses.

Axes: B rows, T tokens of the longest response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from stages.engines.decoding import Numbered, prompt_length, until_end
from stages.engines.drafts import Drafts, Ints
from stages.engines.draws import draw, uniforms
from stages.engines.protocol import Completion, Sampling, overflows
from stages.model.batches import EncodedPrompt, encode_prompt, fits, prompt_batch
from stages.model.loading import VisionLanguageModel
from stages.runtime.batching import batched


class _Row(NamedTuple):
    place: int
    sample: int


class PlainGenerate:
    """Generates `rows` sequences at a time, each with its own reading of the prompt; drafts make it no faster."""

    def __init__(self, vlm: VisionLanguageModel, *, rows: int) -> None:
        self.vlm = vlm
        self.rows = rows

    def generate(self, requests: Sequence[Numbered], sampling: Sampling) -> list[list[Completion]]:
        """As `Generator.generate`."""
        rows = [_Row(place, n) for place, numbered in enumerate(requests) for n in range(numbered.request.n)]
        rows.sort(key=lambda row: prompt_length(requests[row.place].request.prompt))
        completions: list[list[Completion]] = [[] for _ in requests]
        for batch in batched(rows, self.rows):
            prompts = self._encode(requests, batch)
            fitting = [row for row in batch if fits(self.vlm, prompts[row.place], sampling.max_new_tokens)]
            if fitting:
                encoded = [prompts[row.place] for row in fitting]
                uniform_BT2 = [
                    uniforms(sampling.seed, requests[row.place].number, row.sample, sampling.max_new_tokens)
                    for row in fitting
                ]
                drafts = [until_end(self.vlm, requests[row.place].request.draft_ids) for row in fitting]
                found = self._generate(encoded, np.stack(uniform_BT2), drafts, sampling)
                for row, completion in zip(fitting, found, strict=True):
                    completions[row.place].append(completion)
        return completions

    def _encode(self, requests: Sequence[Numbered], batch: Sequence[_Row]) -> dict[int, EncodedPrompt]:
        """Each prompt once, however many rows of the batch it makes."""
        places = dict.fromkeys(row.place for row in batch)
        return {place: encode_prompt(self.vlm, requests[place].request.prompt) for place in places}

    def _generate(
        self,
        prompts: Sequence[EncodedPrompt],
        uniform_BT2: np.ndarray,
        drafts: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> list[Completion]:
        inputs = prompt_batch(self.vlm, prompts)
        drawing = _Drawing(self.vlm, torch.from_numpy(uniform_BT2).to(self.vlm.device), drafts, sampling)
        with self.vlm.precision(passes=True):
            output_BS = self.vlm.model.generate(
                **inputs,
                generation_config=GenerationConfig(
                    max_new_tokens=sampling.max_new_tokens,
                    eos_token_id=list(self.vlm.end_ids),
                    pad_token_id=self.vlm.pad_id,
                    do_sample=False,  # the one token that is left is the one that was drawn
                ),
                logits_processor=LogitsProcessorList([drawing]),
                synced_gpus=False,
            )
        response_BT = output_BS[:, inputs["input_ids"].shape[1] :]
        logprobs_BT = torch.stack(drawing.logprobs, dim=1)
        return [self._completion(*row) for row in zip(response_BT.tolist(), logprobs_BT.tolist(), strict=True)]

    def _completion(self, ids: list[int], logprobs: list[float]) -> Completion:
        length = next((i + 1 for i, token in enumerate(ids) if token in self.vlm.end_ids), None)
        if length is None:
            return Completion(ids, logprobs, "length")
        return Completion(ids[:length], logprobs[:length], "stop")


class _Drawing(LogitsProcessor):
    """Draws a token of each row, leaves no other, and keeps its log-prob."""

    def __init__(
        self, vlm: VisionLanguageModel, uniform_BT2: Tensor, drafts: Sequence[Sequence[int]], sampling: Sampling
    ) -> None:
        self._vlm = vlm
        self._uniform_BT2 = uniform_BT2
        self._sampling = sampling
        self._drafts = Drafts(len(drafts), max(map(len, drafts)))
        for row, draft in enumerate(drafts):
            self._drafts.put(row, draft)
        self._ids_BT = np.zeros(uniform_BT2.shape[:2], np.int64)
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002, transformers names them
        rows = np.arange(len(scores))
        expected_B = self._drafts.ahead(rows, np.zeros_like(rows))
        drawn = draw(
            scores,
            self._uniform_BT2[:, len(self.logprobs)],
            torch.from_numpy(expected_B).to(scores.device),
            self._vlm,
            self._sampling,
        )
        # torch would take any token of logits that are no numbers.
        if drawn.logprobs_N.isnan().any():
            raise overflows(self._vlm.tokenizer.name_or_path)
        self._follow(drawn.ids_N.cpu().numpy(), expected_B)
        self.logprobs.append(drawn.logprobs_N)
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn.ids_N[:, None], 0.0)

    def _follow(self, ids_B: Ints, expected_B: Ints) -> None:
        """Each draft goes on behind what was drawn."""
        count = len(self.logprobs)
        self._ids_BT[:, count] = ids_B
        ones_B = np.ones_like(ids_B)
        self._drafts.advance(ones_B, ids_B != expected_B, self._ids_BT, ones_B * (count + 1))
