"""What must hold on a GPU in float32 and in bfloat16: samplers, packed rows and gates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measured import Line
from tiny_vlm import tiny_model, tiny_processor
from training_step_case import NO_CLIP, SEED, Case, Shape, make_case
from training_step_sides import Ours

from stages.artifacts.problems import ProblemSet
from stages.engines.protocol import Request, Sampling, ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.model.loading import VisionLanguageModel, load_model, wrap_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe

DIGITS = Path(__file__).parents[2] / "data" / "digits"
SHAPE = Shape(prompt=160, grid=(10, 10), shortest=40, longest=60)
TEMPERATURE = 0.7
LOGPROB_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}
"""Largest difference of one token's log-prob, in nats."""
COSINE_DISTANCE = {"float32": 1e-5, "bfloat16": 2e-2}
"""Of the whole gradient."""


@dataclass(frozen=True)
class TinyOnGpu:
    """A `Maker`: the bench's tiny model on the GPU."""

    bfloat16: bool
    device: str = "cuda"

    def model(self) -> Any:
        return tiny_model(SEED).to(self.device)

    def processor(self) -> Any:
        return tiny_processor()

    def vlm(self) -> VisionLanguageModel:
        return wrap_model(self.model(), self.processor(), torch.bfloat16 if self.bfloat16 else None)


def correctness() -> Iterator[Line]:
    for dtype in ("float32", "bfloat16"):
        yield from _sampler(dtype)
        yield from _packing(dtype)
        yield from _gate_of_ones(dtype)


def _sampler(dtype: str) -> Iterator[Line]:
    """Log-probs of what the engine samples, beside those that it scores."""
    vlm = load_model(DIGITS / "base", dtype=dtype)
    engine, style = TransformersEngine(vlm), load_recipe("digits").prompt
    problems = ProblemSet(DIGITS / "problems_test.parquet")
    prompts = [policy_prompt(vlm.processor, style, p) for p in problems.many(problems.ids[:32])]
    sampled = engine.generate([Request(p, 4) for p in prompts], Sampling(72, TEMPERATURE))
    again = engine.generate([Request(p, 4) for p in prompts], Sampling(72, TEMPERATURE))
    flat = [(prompt, completion) for prompt, four in zip(prompts, sampled, strict=True) for completion in four]
    scored = engine.score([ScoreRequest(prompt, c.ids) for prompt, c in flat], temperature=TEMPERATURE)
    off = [
        abs(a - b)
        for (_, c), own in zip(flat, scored, strict=True)
        for a, b in zip(c.logprobs, own.logprobs, strict=True)
    ]
    tokens = sum(len(completion.ids) for _, completion in flat)
    yield Line(dtype, f"sampler against teacher forcing, largest of {tokens} tokens", max(off), "nats",
               max(off) <= LOGPROB_TOLERANCE[dtype])  # fmt: skip
    yield Line(dtype, "sampler against teacher forcing, mean", sum(off) / len(off), "nats")
    same = [c.ids for four in sampled for c in four] == [c.ids for four in again for c in four]
    yield Line(dtype, "the same seed gives the same tokens", float(same), "", same)


def _packing(dtype: str) -> Iterator[Line]:
    """Packed rows are taken, and give the gradient of plain ones."""
    case = _case(dtype)
    packed, plain = Ours(case, len(case.rows), gated=True), Ours(case, len(case.rows), gated=True)
    yield Line(dtype, "packed rows are taken", float(packed.trainer.reader.packed), "", packed.trainer.reader.packed)
    plain.trainer.reader.packed = False
    distance = _cosine_distance(packed, plain)
    yield Line(dtype, "gradient, packed against plain rows: 1 - cosine", distance, "",
               distance <= COSINE_DISTANCE[dtype])  # fmt: skip


def _gate_of_ones(dtype: str) -> Iterator[Line]:
    case = _case(dtype)
    ones = replace(case, rows=[replace(row, gate_T=[1.0] * len(row.ids)) for row in case.rows])
    distance = _cosine_distance(Ours(ones, len(case.rows), gated=True), Ours(case, len(case.rows), gated=False))
    yield Line(dtype, "gradient, gate of ones against none: 1 - cosine", distance, "", distance <= 1e-6)


def _case(dtype: str) -> Case:
    return replace(make_case(SHAPE, 8, TinyOnGpu(dtype == "bfloat16")), max_grad_norm=NO_CLIP)


def _cosine_distance(one: Ours, other: Ours) -> float:
    gradients = []
    for side in (one, other):
        side.step()
        gradients.append(torch.cat([p.grad.flatten().double() for p in side.model.parameters() if p.grad is not None]))
    return 1 - torch.nn.functional.cosine_similarity(*gradients, dim=0).item()
