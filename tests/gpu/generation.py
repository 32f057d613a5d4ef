"""Generation at the dimensions of Qwen2.5-VL-7B in bfloat16, and what a pass over a block of a draft costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from measured import Line, empty_gpu, peak_gib, seconds_of
from tiny_vlm import SPECIAL, random_image
from torch import Tensor
from training_step_case import SEED
from transformers import DynamicCache
from true_sizes import SIZES, TrueSize

from stages.engines.protocol import Request, Sampling, ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import Prompt

PROMPTS, GROUP, NEW_TOKENS = 8, 8, 128
BLOCKS = (1, 4, 8, 16, 32, 64, 128)
CONTEXT = 1400
LOGPROB_TOLERANCE = 0.25


def generation() -> Iterator[Line]:
    maker = TrueSize("7b", SIZES["7b"].text["num_hidden_layers"], torch.bfloat16)
    with empty_gpu():
        vlm = maker.vlm()
        yield from _sampling(vlm)
        yield from _blocks(vlm)


def _sampling(vlm: VisionLanguageModel) -> Iterator[Line]:
    """Plain sampling of a rollout batch, and the scoring of it."""
    engine = TransformersEngine(vlm)
    rng = np.random.default_rng(SEED)
    vocabulary = SIZES["7b"].text["vocab_size"]
    prompts = [
        Prompt(
            "<|vision_start|><|image_pad|><|vision_end|> "
            + " ".join(f"w{word}" for word in rng.integers(len(SPECIAL), vocabulary, 100)),
            (random_image(40, 25, rng),),
        )
        for _ in range(PROMPTS)
    ]
    requests = [Request(prompt, GROUP) for prompt in prompts]
    taken = seconds_of(lambda: engine.generate(requests, Sampling(NEW_TOKENS, 0.7)), repeats=1, warm_up=0)
    sampled = engine.generate(requests, Sampling(16, 0.7))
    tokens = PROMPTS * GROUP * NEW_TOKENS
    yield Line(
        "7B, bfloat16", f"{PROMPTS} prompts of 1,100, {GROUP} samples each: generation", tokens / taken, "tokens/s"
    )
    yield Line("7B, bfloat16", "the same: peak memory", peak_gib(), "GiB")
    flat = [(request.prompt, c) for request, group in zip(requests, sampled, strict=True) for c in group]
    scores: list[list[float]] = []

    def score() -> None:
        scores[:] = engine.score([ScoreRequest(prompt, c.ids) for prompt, c in flat], temperature=0.7)

    yield Line("7B, bfloat16", "scoring 64 responses of 16", seconds_of(score, repeats=1), "s")
    off = [abs(a - b) for (_, c), own in zip(flat, scores, strict=True) for a, b in zip(c.logprobs, own, strict=True)]
    yield Line("7B, bfloat16", "sampler against teacher forcing, largest", max(off), "nats",
               max(off) <= LOGPROB_TOLERANCE)  # fmt: skip


@torch.inference_mode()
def _blocks(vlm: VisionLanguageModel) -> Iterator[Line]:
    """A pass over a block behind transformers' own cache: what verifying that many tokens of a draft costs."""
    text = vlm.model.get_decoder()
    for rows in (8, 64):
        cache = DynamicCache(config=text.config)
        ids = torch.randint(len(SPECIAL), 100_000, (rows, CONTEXT), device="cuda")
        text(input_ids=ids, past_key_values=cache, use_cache=True)
        for block in BLOCKS:
            taken = seconds_of(lambda: _pass(text, cache, ids[:, :block]))  # noqa: B023, called at once
            yield Line("7B, bfloat16", f"{rows} rows behind {CONTEXT}: a pass over {block} tokens", taken * 1e3, "ms")


def _pass(text: Any, cache: DynamicCache, ids: Tensor) -> None:
    text(input_ids=ids, past_key_values=cache, use_cache=True)
    cache.crop(CONTEXT)
