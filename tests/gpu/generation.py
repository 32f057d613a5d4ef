"""Generation in bfloat16: transformers' own, ours, and ours with drafts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from measured import Line, empty_gpu, peak_gib, seconds_of
from tiny_vlm import SPECIAL, VOCABULARY, random_image
from training_step_case import SEED
from true_sizes import TrueSize

from stages.engines import decoding
from stages.engines.decoding import Decoder, Numbered
from stages.engines.drafts import NOTHING, Ints
from stages.engines.plain_generate import PlainGenerate
from stages.engines.protocol import Completion, Request, Sampling, ScoreRequest
from stages.engines.rows import Floats, Span
from stages.engines.transformers_engine import TransformersEngine
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import Prompt

PROMPT_TOKENS = 16384
"""Read at once."""
SAMPLES = 8
"""Of a prompt, where it has several."""
ACCEPTANCES = (0.9, 0.97)
BLOCKS = (16, 32, 64)
LOGPROB_TOLERANCE = 0.25
"""Largest difference of one token's log-prob, in nats."""


class Load(NamedTuple):
    """So many rows at once, each of an image of columns x rows tokens and some words, and of new tokens."""

    maker: TrueSize
    rows: int
    new_tokens: int
    grid: tuple[int, int]
    words: int

    @property
    def part(self) -> str:
        return f"{self.maker.size}, bfloat16"

    @property
    def prompt_tokens(self) -> int:
        columns, rows = self.grid
        return columns * rows + 2 + self.words

    def prompt(self, rng: np.random.Generator) -> Prompt:
        words = " ".join(f"w{word}" for word in rng.integers(len(SPECIAL), VOCABULARY, self.words))
        return Prompt(f"<|vision_start|><|image_pad|><|vision_end|> {words}", (random_image(*self.grid, rng),))


def generation(load: Load) -> Iterator[Line]:
    with empty_gpu(), torch.inference_mode():
        vlm = load.maker.vlm()
        yield from _scores(load, vlm)
        yield from _repairs(load, vlm)
        yield from _rollouts(load, vlm)
        del vlm


def generation_gib(load: Load) -> float:
    """Weights, the cache thrice, since `generate` copies it as it grows, and a reading of prompts, in GiB."""
    size = load.maker.footprint()
    cache = size.keys_and_values("bfloat16", load.rows, load.prompt_tokens + load.new_tokens)
    return (size.at_rest("bfloat16", None) + 3 * cache + size.forward("bfloat16", PROMPT_TOKENS)) / 2**30


def _scores(load: Load, vlm: VisionLanguageModel) -> Iterator[Line]:
    """Log-probs of what is sampled, beside those that are scored."""
    engine, rng = TransformersEngine(vlm), np.random.default_rng(SEED)
    requests = [Request(load.prompt(rng), SAMPLES) for _ in range(4)]
    flat = [
        (request.prompt, completion)
        for request, group in zip(requests, engine.generate(requests, Sampling(16, 0.7)), strict=True)
        for completion in group
    ]
    scores = engine.score([ScoreRequest(prompt, c.ids) for prompt, c in flat], temperature=0.7)
    off = [
        abs(a - b)
        for (_, c), own in zip(flat, scores, strict=True)
        for a, b in zip(c.logprobs, own.logprobs, strict=True)
    ]
    own_loop = isinstance(engine._decoder, Decoder)
    yield Line(load.part, "our loop is taken", float(own_loop), "", own_loop)
    yield Line(load.part, "packed rows are taken", float(engine._reader.packed), "", engine._reader.packed)
    holds = max(off) <= LOGPROB_TOLERANCE
    yield Line(load.part, f"sampler against teacher forcing, largest of {len(off)} tokens", max(off), "nats", holds)


def _repairs(load: Load, vlm: VisionLanguageModel) -> Iterator[Line]:
    """A prompt for each row, as repairs have; with drafts whose tokens are drawn at a given rate."""
    rng = np.random.default_rng(SEED)
    drafts = rng.integers(len(SPECIAL), VOCABULARY, (load.rows, load.new_tokens)).tolist()
    bare = [Numbered(number, Request(load.prompt(rng))) for number in range(load.rows)]
    drafted = [Numbered(own.number, Request(own.request.prompt, 1, ids)) for own, ids in zip(bare, drafts, strict=True)]
    what = f"{load.rows} prompts of {load.prompt_tokens}, {load.new_tokens} new tokens each"
    plain = _seconds(load, PlainGenerate(vlm, rows=load.rows).generate, bare)
    yield Line(load.part, f"{what}: transformers' generate", plain, "s")
    yield Line(load.part, "the same: peak memory", peak_gib(), "GiB")
    own = _seconds(load, _decoder(load, vlm, None).generate, bare)
    yield Line(load.part, f"{what}: our loop", own, "s")
    for acceptance in ACCEPTANCES:
        for block in BLOCKS:
            with patch.object(decoding._Run, "_draw", imposed_draw(acceptance)):
                taken = _seconds(load, _decoder(load, vlm, block).generate, drafted)
            share = f"drafts accepted at {acceptance:.0%} a token, blocks of {block}"
            yield Line(load.part, f"{share}: generate's seconds over ours", plain / taken, "x")
            yield Line(load.part, f"{share}: repairs", load.rows / taken, "repairs/s")


def _rollouts(load: Load, vlm: VisionLanguageModel) -> Iterator[Line]:
    """Several samples of each prompt, as rollouts have."""
    rng = np.random.default_rng(SEED)
    prompts = load.rows // SAMPLES
    requests = [Numbered(number, Request(load.prompt(rng), SAMPLES)) for number in range(prompts)]
    own = _seconds(load, _decoder(load, vlm, None).generate, requests)
    tokens = load.rows * load.new_tokens
    what = f"{prompts} prompts of {load.prompt_tokens}, {SAMPLES} samples of {load.new_tokens}"
    yield Line(load.part, f"{what}: our loop", tokens / own, "tokens/s")
    plain = _seconds(load, PlainGenerate(vlm, rows=load.rows).generate, requests)
    yield Line(load.part, f"{what}: transformers' generate", tokens / plain, "tokens/s")


def imposed_draw(acceptance: float) -> Callable[[decoding._Run, Span], tuple[Ints, Floats]]:
    """`_Run._draw` whose drawn token is the expected one at that rate: random weights would never draw it. The work is
    the same."""
    own, rng = decoding._Run._draw, np.random.default_rng(SEED)

    def draw(run: decoding._Run, span: Span) -> tuple[Ints, Floats]:
        ids_N, logprobs_N = own(run, span)
        accepted_N = (span.expected_N != NOTHING) & (rng.random(len(ids_N)) < acceptance)
        return np.where(accepted_N, span.expected_N, ids_N), logprobs_N

    return draw


def _decoder(load: Load, vlm: VisionLanguageModel, block: int | None) -> Decoder:
    return Decoder(vlm, rows=load.rows, prompt_tokens=PROMPT_TOKENS, draft_block=block)


def _seconds(
    load: Load,
    generate: Callable[[Sequence[Numbered], Sampling], list[list[Completion]]],
    requests: Sequence[Numbered],
) -> float:
    return seconds_of(partial(generate, requests, Sampling(load.new_tokens, 0.7)), repeats=1, warm_up=0)
