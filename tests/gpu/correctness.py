"""What must hold on a GPU in float32 and in bfloat16: samplers, packed rows and gates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measured import Line, device
from tiny_vlm import tiny_model, tiny_processor
from training_step_case import NO_CLIP, SEED, Case, Shape, make_case
from training_step_sides import Ours

from stages.artifacts.problems import ProblemSet
from stages.engines.protocol import Completion, Request, Sampling, ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.model.loading import VisionLanguageModel, load_model, wrap_model
from stages.model.prompts import Prompt, policy_prompt
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
    device: str = field(default_factory=device)

    def model(self) -> Any:
        return tiny_model(SEED).to(self.device)

    def processor(self) -> Any:
        return tiny_processor()

    def vlm(self) -> VisionLanguageModel:
        return wrap_model(self.model(), self.processor(), torch.bfloat16 if self.bfloat16 else None)


def correctness() -> Iterator[Line]:
    for dtype in ("float32", "bfloat16"):
        yield from _sampler(dtype)
        yield from _verified_drafts(dtype)
        yield from _packing(dtype)
        yield from _gate_of_ones(dtype)


def _sampler(dtype: str) -> Iterator[Line]:
    """Log-probs of what the engine samples, beside those that it scores."""
    engine, prompts = _digits(dtype)
    requests = [Request(prompt, 4) for prompt in prompts]
    sampled, again = (engine.generate(requests, Sampling(72, TEMPERATURE)) for _ in range(2))
    yield from _against_scoring(dtype, "sampler", engine, requests, sampled)
    same = _ids(sampled) == _ids(again)
    yield Line(dtype, "the same seed gives the same tokens", float(same), "", same)


def _verified_drafts(dtype: str) -> Iterator[Line]:
    """The same where an engine verifies drafts, which are other samples here: they change no response."""
    engine, prompts = _digits(dtype)
    drafts = engine.generate([Request(prompt) for prompt in prompts], Sampling(72, TEMPERATURE))
    plain = [Request(prompt, 4) for prompt in prompts]
    drafted = [replace(request, draft_ids=of.ids) for request, (of,) in zip(plain, drafts, strict=True)]
    sampled, verified = (engine.generate(requests, Sampling(72, TEMPERATURE, seed=1)) for requests in (plain, drafted))
    yield from _against_scoring(dtype, "drafts verified", engine, drafted, verified)
    same = sum(map(list.__eq__, _ids(sampled), _ids(verified))) / len(_ids(sampled))
    holds = same == 1 or dtype != "float32"  # a rounding may change a draw
    yield Line(dtype, "share of responses that drafts leave as they are", same, "", holds)


def _digits(dtype: str) -> tuple[TransformersEngine, list[Prompt]]:
    """The digits' base, and prompts of theirs."""
    vlm = load_model(DIGITS / "base", dtype=dtype)
    problems = ProblemSet(DIGITS / "problems_test.parquet")
    style = load_recipe("digits").prompt
    return TransformersEngine(vlm), [policy_prompt(vlm.processor, style, p) for p in problems.many(problems.ids[:32])]


def _against_scoring(
    dtype: str, name: str, engine: TransformersEngine, requests: list[Request], sampled: list[list[Completion]]
) -> Iterator[Line]:
    """Log-probs of what was sampled, beside those that teacher forcing gives."""
    flat = [(request.prompt, c) for request, of in zip(requests, sampled, strict=True) for c in of]
    scored = engine.score([ScoreRequest(prompt, c.ids) for prompt, c in flat], temperature=TEMPERATURE)
    off = [
        abs(a - b)
        for (_, c), own in zip(flat, scored, strict=True)
        for a, b in zip(c.logprobs, own.logprobs, strict=True)
    ]
    yield Line(dtype, f"{name} against teacher forcing, largest of {len(off)} tokens", max(off), "nats",
               max(off) <= LOGPROB_TOLERANCE[dtype])  # fmt: skip
    yield Line(dtype, f"{name} against teacher forcing, mean", sum(off) / len(off), "nats")


def _ids(sampled: list[list[Completion]]) -> list[list[int]]:
    return [c.ids for of in sampled for c in of]


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
