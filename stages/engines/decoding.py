"""Our own decoding loop: rows that come and go, one reading of a prompt for all its responses, verified drafts.

A pass reads the last token of every row and, behind it, the tokens that its draft goes on with. At each of them a token
is drawn; a row keeps what is drawn up to the first that is another than the draft's. Every token that is kept is drawn
from the model's distribution given the tokens before it, whatever the draft says, unless `Sampling.keep` prefers the
draft's.

Axes: N tokens of a pass, W tokens that go into the cache, A axes of rotary positions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, takewhile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.engines.drafts import Ints
from stages.engines.draws import draw, uniforms
from stages.engines.protocol import Completion, Request, Sampling, overflows
from stages.engines.rows import Floats, Rows, Span
from stages.model.batches import EncodedPrompt, encode_prompt, fits
from stages.model.codec import Codec
from stages.model.key_value_cache import SLOT_MULTIPLE, Block, CachedPass, KeyValueCache
from stages.model.layout import one_row, packed_prompts, prompt_positions
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import Prompt

DRAFT_BLOCKS = {"cpu": 8}
LONG_DRAFT_BLOCK = 16
"""Tokens of a row in one pass where the recipe names none: a CPU pays for each of them, other devices for the pass."""
FREE_SHARE = 8
"""New rows start when one in so many is free: prompts are read together."""
FIRST_SLOTS = 128
"""For the response, of the memory that a row has at first."""


@dataclass(frozen=True)
class Numbered:
    """A request with its place among those of all processes, which its draws depend on."""

    number: int
    request: Request


class _Unit(NamedTuple):
    """Samples of one request that share one reading of its prompt."""

    place: int
    samples: range


class Decoder:
    """Generates with a model whose text part takes packed rows: at most `rows` at once, and about `prompt_tokens` in
    one reading of prompts."""

    def __init__(self, vlm: VisionLanguageModel, *, rows: int, prompt_tokens: int, draft_block: int | None) -> None:
        self.vlm = vlm
        self.rows = rows
        self.prompt_tokens = prompt_tokens
        self.draft_block = draft_block or DRAFT_BLOCKS.get(vlm.device.type, LONG_DRAFT_BLOCK)

    def generate(self, requests: Sequence[Numbered], sampling: Sampling) -> list[list[Completion]]:
        """As `Generator.generate`."""
        run = _Run(self, requests, sampling)
        while run.waiting or run.rows.used:
            run.admit()
            if run.rows.used:
                run.step()
        return run.completions()


class _Run:
    """One call's requests: those that wait, the rows in use, and what is finished."""

    def __init__(self, decoder: Decoder, requests: Sequence[Numbered], sampling: Sampling) -> None:
        self.decoder, self.vlm = decoder, decoder.vlm
        self.requests, self.sampling = requests, sampling
        # Greedily there is but one response.
        counts = [1 if sampling.temperature == 0 else numbered.request.n for numbered in requests]
        units = [
            _Unit(place, range(start, min(start + decoder.rows, n)))
            for place, n in enumerate(counts)
            for start in range(0, n, decoder.rows)
        ]
        # What has no room in memory shows at once, and short ones fill up the end.
        self.waiting = deque(sorted(units, key=lambda unit: -prompt_length(requests[unit.place].request.prompt)))
        self.drafts = [until_end(self.vlm, numbered.request.draft_ids) for numbered in requests]
        longest_draft = max(map(len, self.drafts), default=0)
        self.rows = Rows(min(decoder.rows, sum(counts)), sampling.max_new_tokens, longest_draft)
        self.cache = KeyValueCache(self.rows.most)
        self.finished: dict[tuple[int, int], Completion] = {}

    def completions(self) -> list[list[Completion]]:
        groups: list[list[Completion]] = [[] for _ in self.requests]
        for (place, _), completion in sorted(self.finished.items(), key=lambda item: item[0]):
            copies = self.requests[place].request.n if self.sampling.temperature == 0 else 1
            groups[place] += [completion] * copies
        return groups

    def admit(self) -> None:
        """Read prompts that wait, as long as there are rows for them."""
        while self.waiting and self.rows.free >= max(len(self.waiting[0].samples), self.rows.most // FREE_SHARE):
            self._read(self._next_units())

    def step(self) -> None:
        """One pass, and what comes of it."""
        span = self.rows.span(self.decoder.draft_block)
        ids_N, logprobs_N = self._draw(span)
        if np.isnan(logprobs_N).any():
            raise overflows(self.vlm.tokenizer.name_or_path)
        ended_B = self.rows.emit(span, ids_N, logprobs_N, self.vlm.end_ids)
        for row in np.flatnonzero(ended_B):
            key, ids, logprobs = self.rows.response(int(row))
            self.finished[key] = Completion(ids, logprobs, "stop" if ids[-1] in self.vlm.end_ids else "length")
        if ended_B.any():
            slots = int(self.rows.slots_used.max())
            self.cache.move(*self.rows.close(ended_B), slots)

    def _next_units(self) -> list[tuple[_Unit, EncodedPrompt]]:
        """Those that are read in one pass."""
        units: list[tuple[_Unit, EncodedPrompt]] = []
        free, tokens = self.rows.free, self.decoder.prompt_tokens
        while self.waiting and len(self.waiting[0].samples) <= free and tokens > 0:
            unit = self.waiting.popleft()
            prompt = encode_prompt(self.vlm, self.requests[unit.place].request.prompt)
            if fits(self.vlm, prompt, self.sampling.max_new_tokens):
                units.append((unit, prompt))
                free -= len(unit.samples)
                tokens -= len(prompt.ids)
        return units

    def _read(self, units: Sequence[tuple[_Unit, EncodedPrompt]]) -> None:
        """Put prompts into the cache, a copy for each row, without their last tokens: these the rows begin with."""
        self.cache.reserve(max((self._first_slots(*unit) for unit in units), default=0))
        sources, slots = [], []
        starts = accumulate((len(prompt.ids) - 1 for _, prompt in units), initial=0)
        for (unit, prompt), start in zip(units, starts, strict=False):
            kept = np.arange(len(prompt.ids) - 1)
            for row in self._open(unit, prompt):
                sources.append(start + kept)
                slots.append(row * self.cache.slots + kept)
        if prompts := [prompt for _, prompt in units if len(prompt.ids) > 1]:
            source_W, slots_W = self._on_device(np.concatenate(sources), np.concatenate(slots))
            inputs = packed_prompts(self.vlm, prompts)
            with self.vlm.precision():
                self.vlm.model.base_model(**inputs, cached=CachedPass(self.cache, slots_W, source_W), use_cache=False)

    def _first_slots(self, unit: _Unit, prompt: EncodedPrompt) -> int:
        response = max(FIRST_SLOTS, len(self.drafts[unit.place]) + self.decoder.draft_block)
        return len(prompt.ids) + min(response, self.sampling.max_new_tokens)

    def _open(self, unit: _Unit, prompt: EncodedPrompt) -> list[int]:
        number, count = self.requests[unit.place].number, self.sampling.max_new_tokens
        position = int(prompt_positions(self.vlm, prompt)[:, -1].max())
        return [
            self.rows.open(
                unit.place,
                sample,
                prompt.ids,
                position,
                uniforms(self.sampling.seed, number, sample, count),
                self.drafts[unit.place],
            )
            for sample in unit.samples
        ]

    def _draw(self, span: Span) -> tuple[Ints, Floats]:
        """The token that is drawn behind each of the pass, and its log-prob."""
        needed = int(span.slot_N.max()) + 1
        self.cache.reserve(needed)
        ids_N, position_N, slot_N, slots_W, expected_N, uniform_2N, *places = self._on_device(
            span.ids_N,
            span.position_N,
            span.slot_N,
            span.row_N * self.cache.slots + span.slot_N,
            span.expected_N,
            span.uniform_N2.view(np.int64),  # as bits
            *(() if span.is_even else (span.place_BQ(), span.where_N())),
        )
        block = _block(span, slot_N, places, -(-needed // SLOT_MULTIPLE) * SLOT_MULTIPLE)
        inputs = one_row(self.vlm, ids_N, position_N.expand(self._axes, -1))
        with self.vlm.precision():
            cached = CachedPass(self.cache, slots_W, block=block)
            logits_NV = self.vlm.model(**inputs, cached=cached, use_cache=False).logits[0]
        uniform_N2 = uniform_2N.view(torch.float64).view(-1, 2)
        device = logits_NV.device
        drawn = draw(logits_NV, uniform_N2.to(device), expected_N.to(device), self.vlm, self.sampling)
        # One copy, which waits for the device once a pass.
        ids, logprobs_N = torch.stack([drawn.ids_N.double(), drawn.logprobs_N.double()]).cpu().numpy()
        return ids.astype(np.int64), logprobs_N

    @cached_property
    def _axes(self) -> int:
        return 3 if hasattr(self.vlm.model.base_model, "get_rope_index") else 1

    def _on_device(self, *arrays: Ints) -> Sequence[Tensor]:
        """In one copy, flat."""
        whole = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
        return whole.to(self.vlm.device).split([array.size for array in arrays])


def prompt_length(prompt: Prompt) -> int:
    """What a prompt's length is sorted by, before it is encoded."""
    return len(prompt.text) + len(prompt.tail) + len(prompt.spliced_ids)


def until_end(codec: Codec, draft_ids: Sequence[int]) -> list[int]:
    """Nothing is expected behind an end token, which is drawn behind the token before it."""
    return list(takewhile(lambda token: token not in codec.end_ids, draft_ids))


def _block(span: Span, slot_N: Tensor, places: Sequence[Tensor], slots: int) -> Block:
    shape = span.rows, span.width
    if not places:
        return Block(slot_N.view(shape), slots)
    place_BQ, where_N = places[0].view(shape), places[1]
    return Block(slot_N[place_BQ], slots, place_BQ, where_N)
