"""The embedded engine: transformers' own `generate`; no server, any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from stages import processes
from stages.batching import batched
from stages.engines.protocol import Completion, Request, Sampling, ScoreRequest, overflows
from stages.model.batches import EncodedPrompt, encode_prompt, fits, prompt_batch
from stages.model.codec import Codec
from stages.model.head import sampled_logits
from stages.model.layout import Reading
from stages.model.loading import VisionLanguageModel
from stages.model.logprobs import LogprobReader
from stages.model.prompts import Prompt


class TransformersEngine:
    """One loaded model: generates `rows_per_batch` sequences at a time, scores `tokens_per_batch` tokens."""

    embedded = True

    def __init__(self, vlm: VisionLanguageModel, *, rows_per_batch: int = 64, tokens_per_batch: int = 16384) -> None:
        self.vlm = vlm
        self.codec: Codec = vlm
        self.rows_per_batch = rows_per_batch
        self.tokens_per_batch = tokens_per_batch

    @cached_property
    def _reader(self) -> LogprobReader:
        return LogprobReader(self.vlm)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        return processes.spread(requests, lambda share: self._generate(share, sampling))

    def score(self, requests: Sequence[ScoreRequest], *, temperature: float) -> list[list[float]]:
        return processes.spread(requests, lambda share: self._score(share, temperature))

    def follow(self, save: Callable[[Path], None], folder: Path) -> None:
        """Nothing to do: it generates with the weights that are trained."""

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        rows = [(index, request.prompt) for index, request in enumerate(requests) for _ in range(request.n)]
        rows.sort(key=lambda row: _length(row[1]))
        completions: list[list[Completion]] = [[] for _ in requests]
        with torch.random.fork_rng(devices=_cuda_devices()):
            torch.manual_seed(sampling.seed + processes.index())
            for batch in batched(rows, self.rows_per_batch):
                encoded = zip(batch, self._encode([prompt for _, prompt in batch]), strict=True)
                fitting = [
                    (row[0], prompt) for row, prompt in encoded if fits(self.vlm, prompt, sampling.max_new_tokens)
                ]
                generated = self._generate_batch([prompt for _, prompt in fitting], sampling) if fitting else []
                for (index, _), completion in zip(fitting, generated, strict=True):
                    completions[index].append(completion)
        return completions

    @torch.inference_mode()
    def _score(self, requests: Sequence[ScoreRequest], temperature: float) -> list[list[float]]:
        encoded = self._encode([request.prompt for request in requests])
        readings = [Reading(prompt, request.ids) for prompt, request in zip(encoded, requests, strict=True)]
        scores: list[list[float]] = [[] for _ in requests]
        for members in self._reader.micro_batches(readings, self.tokens_per_batch):
            logprobs = self._reader.read([readings[i] for i in members], temperature=temperature)
            for i, logprobs_T in zip(members, logprobs.logprobs_BT.tolist(), strict=True):
                scores[i] = logprobs_T[: len(requests[i].ids)]
        return scores

    def _encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Encode each prompt once, however many rows of the batch it makes."""
        encoded = {id(prompt): encode_prompt(self.vlm, prompt) for prompt in {id(p): p for p in prompts}.values()}
        return [encoded[id(prompt)] for prompt in prompts]

    def _generate_batch(self, prompts: Sequence[EncodedPrompt], sampling: Sampling) -> list[Completion]:
        inputs = prompt_batch(self.vlm, prompts)
        recorder = _SampledLogprobs(self.vlm, sampling.temperature or 1.0)
        with self.vlm.precision():
            output_BS = self.vlm.model.generate(
                **inputs,
                generation_config=self._generation_config(sampling),
                logits_processor=LogitsProcessorList([recorder]),
                synced_gpus=False,
            )
        response_BT = output_BS[:, inputs["input_ids"].shape[1] :]
        logprobs_BT = recorder.finish(output_BS)
        return [self._completion(*row) for row in zip(response_BT.tolist(), logprobs_BT.tolist(), strict=True)]

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        """Plain sampling, or plain greedy decoding; the temperature is applied where the log-probs are taken."""
        plain = {"do_sample": False} if sampling.temperature == 0 else {"do_sample": True, "top_k": 0, "top_p": 1.0}
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(self.vlm.end_ids),
            pad_token_id=self.vlm.pad_id,
            **plain,
        )

    def _completion(self, ids: list[int], logprobs: list[float]) -> Completion:
        length = next((i + 1 for i, token in enumerate(ids) if token in self.vlm.end_ids), None)
        if length is None:
            return Completion(ids, logprobs, "length")
        return Completion(ids[:length], logprobs[:length], "stop")


class _SampledLogprobs(LogitsProcessor):
    """Makes the sampled distribution and keeps the log-prob of each token drawn from it, not the distributions."""

    def __init__(self, vlm: VisionLanguageModel, temperature: float) -> None:
        self._vlm = vlm
        self._temperature = temperature
        self._last_BV: Tensor | None = None
        self._columns: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._gather(input_ids)
        self._last_BV = sampled_logits(scores, self._vlm.banned_ids, self._temperature).log_softmax(-1)
        # One logit that is no number makes all of its row none; torch would draw from it, or abort the device.
        if self._last_BV[:, 0].isnan().any():
            raise overflows(self._vlm.tokenizer.name_or_path)
        return self._last_BV

    def finish(self, input_ids: Tensor) -> Tensor:
        """Log-probs (B, T) of every generated token."""
        self._gather(input_ids)
        return torch.stack(self._columns, dim=1)

    def _gather(self, input_ids: Tensor) -> None:
        if self._last_BV is not None:
            self._columns.append(self._last_BV.gather(1, input_ids[:, -1:]).squeeze(1))


def _length(prompt: Prompt) -> int:
    """What a prompt's length is sorted by, before it is encoded."""
    return len(prompt.text) + len(prompt.tail) + len(prompt.spliced_ids)


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count()))
