"""The embedded engine: a transformers model with our own decoding loop; no server, any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch

from stages.engines.decoding import Decoder, Numbered
from stages.engines.decoding_check import agrees
from stages.engines.plain_generate import PlainGenerate
from stages.engines.protocol import Batch, Completion, Request, Sampling, ScoreRequest, TokenScores
from stages.model.batches import EncodedPrompt, encode_prompt
from stages.model.codec import Codec
from stages.model.layout import Reading
from stages.model.loading import VisionLanguageModel
from stages.model.logprobs import LogprobReader, check_mixed_rows
from stages.model.prompts import Prompt
from stages.runtime import processes


class TransformersEngine:
    """One loaded model: generates `rows_per_batch` sequences at a time, reads or scores `tokens_per_batch` tokens.

    `draft_block` tokens of a draft are verified at once; what suits the device if None.
    """

    embedded = True

    def __init__(
        self,
        vlm: VisionLanguageModel,
        *,
        rows_per_batch: int = 64,
        tokens_per_batch: int = 16384,
        draft_block: int | None = None,
    ) -> None:
        self.vlm = vlm
        self.codec: Codec = vlm
        self.rows_per_batch = rows_per_batch
        self.tokens_per_batch = tokens_per_batch
        self.draft_block = draft_block

    @cached_property
    def _reader(self) -> LogprobReader:
        return LogprobReader(self.vlm)

    @cached_property
    def _decoder(self) -> Decoder | PlainGenerate:
        check_mixed_rows(self.vlm)
        decoder = Decoder(
            self.vlm, rows=self.rows_per_batch, prompt_tokens=self.tokens_per_batch, draft_block=self.draft_block
        )
        return decoder if agrees(decoder) else PlainGenerate(self.vlm, rows=self.rows_per_batch)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        numbered = [Numbered(number, request) for number, request in enumerate(requests)]
        return processes.spread(numbered, lambda share: self._generate(share, sampling))

    def stream(self, batches: Iterable[Batch]) -> Iterator[list[list[Completion]]]:
        """One batch after the other: what is read beside a row moves the last bits of its log-probs, and a batch comes
        out the same wherever a stopped run goes on."""
        return (self.generate(batch.requests, batch.sampling) for batch in batches)

    def score(self, requests: Sequence[ScoreRequest], *, temperature: float) -> list[TokenScores]:
        return processes.spread(requests, lambda share: self._score(share, temperature))

    def follow(self, save: Callable[[Path], None], folder: Path) -> None:
        """Nothing to do: it generates with the weights that are trained."""

    def take(self, vlm: VisionLanguageModel) -> None:
        """Go on with another model's weights, in the type of this engine's own."""
        if vlm is not self.vlm:
            self.vlm.model.load_state_dict(vlm.model.state_dict())

    @torch.inference_mode()
    def _generate(self, requests: Sequence[Numbered], sampling: Sampling) -> list[list[Completion]]:
        return self._decoder.generate(requests, sampling)

    @torch.inference_mode()
    def _score(self, requests: Sequence[ScoreRequest], temperature: float) -> list[TokenScores]:
        prompts = [request.prompt for request in requests]
        encoded = self._encode([*prompts, *(r.against or r.prompt for r in requests)])
        own, other = (
            [Reading(prompt, request.ids) for prompt, request in zip(part, requests, strict=True)]
            for part in (encoded[: len(requests)], encoded[len(requests) :])
        )
        scores: dict[int, TokenScores] = {}
        for members in self._reader.micro_batches(own, self.tokens_per_batch):
            for i, values in zip(members, self._read(own, other, members, temperature), strict=True):
                scores[i] = TokenScores(*(value_T[: len(requests[i].ids)] for value_T in values))
        return [scores[i] for i in range(len(requests))]

    def _read(
        self, own: Sequence[Reading], other: Sequence[Reading], members: Sequence[int], temperature: float
    ) -> Iterator[tuple[list[float], ...]]:
        """Of each member what `TokenScores` has, padded; a second pass only where a prompt has another beside it."""
        readings, others = [own[i] for i in members], [other[i] for i in members]
        compared = [mine.prompt is not its.prompt for mine, its in zip(readings, others, strict=True)]
        if any(compared):
            read, divergences_BT = self._reader.read_against(readings, others, temperature=temperature)
            divergences_BT[~torch.tensor(compared)] = 0
        else:
            read = self._reader.read(readings, temperature=temperature)
            divergences_BT = torch.zeros_like(read.logprobs_BT)
        return zip(read.logprobs_BT.tolist(), read.entropy_BT.tolist(), divergences_BT.tolist(), strict=True)

    def _encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Encode each prompt once, however many rows of the batch it makes."""
        encoded = {id(prompt): encode_prompt(self.vlm, prompt) for prompt in {id(p): p for p in prompts}.values()}
        return [encoded[id(prompt)] for prompt in prompts]
