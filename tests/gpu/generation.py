"""Generation at the dimensions of Qwen2.5-VL-7B in bfloat16: transformers' own, ours, and ours with drafts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from measured import Line, empty_gpu, peak_gib, seconds_of
from tiny_vlm import SPECIAL, random_image
from training_step_case import SEED
from true_sizes import SIZES, TrueSize

from stages.engines import decoding
from stages.engines.decoding import Decoder, Numbered
from stages.engines.drafts import NOTHING, Ints
from stages.engines.plain_generate import PlainGenerate
from stages.engines.protocol import Completion, Request, Sampling, ScoreRequest
from stages.engines.rows import Floats, Span
from stages.engines.transformers_engine import TransformersEngine
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import Prompt

PART = "7B, bfloat16"
ROWS, NEW_TOKENS = 64, 300
VOCABULARY = SIZES["7b"].text["vocab_size"]
ACCEPTANCES = (0.9, 0.97)
BLOCKS = (16, 32, 64)
LOGPROB_TOLERANCE = 0.25
"""Largest difference of one token's log-prob, in nats."""


@torch.inference_mode()
def generation() -> Iterator[Line]:
    maker = TrueSize("7b", SIZES["7b"].text["num_hidden_layers"], torch.bfloat16)
    with empty_gpu():
        vlm = maker.vlm()
        yield from _scores(vlm)
        yield from _repairs(vlm)
        yield from _rollouts(vlm)


def _scores(vlm: VisionLanguageModel) -> Iterator[Line]:
    """Log-probs of what is sampled, beside those that are scored."""
    engine, rng = TransformersEngine(vlm), np.random.default_rng(SEED)
    requests = [Request(_prompt(rng), 8) for _ in range(4)]
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
    yield Line(PART, "our loop is taken", float(own_loop), "", own_loop)
    yield Line(PART, "packed rows are taken", float(engine._reader.packed), "", engine._reader.packed)
    holds = max(off) <= LOGPROB_TOLERANCE
    yield Line(PART, "sampler against teacher forcing, largest of 512 tokens", max(off), "nats", holds)


def _repairs(vlm: VisionLanguageModel) -> Iterator[Line]:
    """A prompt for each row, as repairs have; with drafts whose tokens are drawn at a given rate."""
    rng = np.random.default_rng(SEED)
    drafts = rng.integers(len(SPECIAL), VOCABULARY, (ROWS, NEW_TOKENS)).tolist()
    bare = [Numbered(number, Request(_prompt(rng))) for number in range(ROWS)]
    drafted = [Numbered(own.number, Request(own.request.prompt, 1, ids)) for own, ids in zip(bare, drafts, strict=True)]
    what = f"{ROWS} prompts of 1,100, {NEW_TOKENS} new tokens each"
    plain = _seconds(PlainGenerate(vlm, rows=ROWS).generate, bare)
    yield Line(PART, f"{what}: transformers' generate", plain, "s")
    yield Line(PART, "the same: peak memory", peak_gib(), "GiB")
    own = _seconds(_decoder(vlm, None).generate, bare)
    yield Line(PART, f"{what}: our loop", own, "s")
    for acceptance in ACCEPTANCES:
        for block in BLOCKS:
            with patch.object(decoding._Run, "_draw", imposed_draw(acceptance)):
                taken = _seconds(_decoder(vlm, block).generate, drafted)
            share = f"drafts accepted at {acceptance:.0%} a token, blocks of {block}"
            yield Line(PART, f"{share}: generate's seconds over ours", plain / taken, "x")


def _rollouts(vlm: VisionLanguageModel) -> Iterator[Line]:
    """Eight samples of each prompt, as rollouts have."""
    rng = np.random.default_rng(SEED)
    requests = [Numbered(number, Request(_prompt(rng), 8)) for number in range(ROWS // 8)]
    own = _seconds(_decoder(vlm, None).generate, requests)
    what = f"{ROWS // 8} prompts of 1,100, 8 samples of {NEW_TOKENS}"
    yield Line(PART, f"{what}: our loop", ROWS * NEW_TOKENS / own, "tokens/s")
    plain = _seconds(PlainGenerate(vlm, rows=ROWS).generate, requests)
    yield Line(PART, f"{what}: transformers' generate", ROWS * NEW_TOKENS / plain, "tokens/s")


def imposed_draw(acceptance: float) -> Callable[[decoding._Run, Span], tuple[Ints, Floats]]:
    """`_Run._draw` whose drawn token is the expected one at that rate: random weights would never draw it. The work is
    the same."""
    own, rng = decoding._Run._draw, np.random.default_rng(SEED)

    def draw(run: decoding._Run, span: Span) -> tuple[Ints, Floats]:
        ids_N, logprobs_N = own(run, span)
        accepted_N = (span.expected_N != NOTHING) & (rng.random(len(ids_N)) < acceptance)
        return np.where(accepted_N, span.expected_N, ids_N), logprobs_N

    return draw


def _decoder(vlm: VisionLanguageModel, block: int | None) -> Decoder:
    return Decoder(vlm, rows=ROWS, prompt_tokens=16384, draft_block=block)


def _seconds(
    generate: Callable[[Sequence[Numbered], Sampling], list[list[Completion]]], requests: Sequence[Numbered]
) -> float:
    return seconds_of(partial(generate, requests, Sampling(NEW_TOKENS, 0.7)), repeats=1, warm_up=0)


def _prompt(rng: np.random.Generator) -> Prompt:
    words = " ".join(f"w{word}" for word in rng.integers(len(SPECIAL), VOCABULARY, 100))
    return Prompt(f"<|vision_start|><|image_pad|><|vision_end|> {words}", (random_image(40, 25, rng),))
