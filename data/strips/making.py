"""What both examples are built with: a curriculum for the tiny model, problems, and repairs of the model's errors."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.strips.handwriting import Handwriting, Strip
from data.strips.tiny_model import plain_logprobs
from data.strips.worked import QUESTIONS, gold_answer, reading
from stages.artifacts.problems import Problem, encode_image
from stages.engines.protocol import Request, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.model.batches import encode_prompt, response_batch
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import Prompt, policy_prompt, repair_prompt
from stages.recipe import load_recipe
from stages.reward.answers import score_answer

PROMPTS = load_recipe("digits").prompt
READ = "Read the digits."
PROOFREADING = 0.1
"""Share of the worked phases that is proofreading, if not said otherwise: a draft with slips, to be written again
without."""
REFERENCE_SHOWN = 0.7
"""Share of the proofreading that shows the right answer."""
Row = dict[str, Any]
Repaired = Callable[[str, Sequence[int], str], str]
"""The worked answer to a kind of question about these digits that a draft should have been, in the draft's words."""


def in_one_wording(right: Callable[[str, Sequence[int]], str]) -> Repaired:
    """Where worked answers differ in nothing but their numbers."""
    return lambda kind, digits, _: right(kind, digits)


@dataclass(frozen=True)
class Example:
    prompt: Prompt
    response: str


@dataclass(frozen=True)
class Phase:
    name: str
    steps: int
    peak_rate: float
    example: Callable[[], Example]


@dataclass(frozen=True)
class Exercises:
    """Random examples of one handwriting."""

    vlm: VisionLanguageModel
    pool: Handwriting
    lengths: tuple[int, int]
    """Fewest and most digits of a strip."""
    right: Callable[[str, Sequence[int]], str]
    """The worked answer to a kind of question about these digits, without a slip."""
    careless: Callable[[str, Strip], str]
    """One in which a reading or a step may have gone wrong."""
    repaired: Repaired
    rng: np.random.Generator
    proofreading: float = PROOFREADING

    def read(self, lengths: tuple[int, int] | None = None) -> Example:
        """A strip to be read."""
        strip = random_strip(self.pool, lengths or self.lengths, self.rng)
        prompt = policy_prompt(self.vlm.processor, PROMPTS, Problem.asking(READ, [strip.image.convert("RGB")]))
        return Example(prompt, reading(strip.digits))

    def worked(self, *, with_slips: bool) -> Example:
        """A question and its worked answer, or proofreading."""
        kind = str(self.rng.choice(list(QUESTIONS)))
        strip = random_strip(self.pool, self.lengths, self.rng)
        problem = Problem.asking(QUESTIONS[kind], [strip.image.convert("RGB")])
        if self.rng.random() >= self.proofreading:
            prompt = policy_prompt(self.vlm.processor, PROMPTS, problem)
            return Example(prompt, self.careless(kind, strip) if with_slips else self.right(kind, strip.digits))
        draft = self.careless(kind, strip)
        ids = self.vlm.tokenizer(draft)["input_ids"]
        reference = str(gold_answer(kind, strip.digits)) if self.rng.random() < REFERENCE_SHOWN else None
        prompt = repair_prompt(self.vlm.processor, PROMPTS, problem, ids, reference)
        return Example(prompt, self.repaired(kind, strip.digits, draft))


def random_strip(pool: Handwriting, lengths: tuple[int, int], rng: np.random.Generator) -> Strip:
    """Digits drawn evenly, as many as `lengths` (fewest, most) allows."""
    fewest, most = lengths
    return pool.strip(rng.integers(0, 10, rng.integers(fewest, most + 1)).tolist(), rng)


def train(vlm: VisionLanguageModel, phases: Sequence[Phase], batch_size: int) -> None:
    """One pass of AdamW over the phases; each warms up and decays on its own."""
    vlm.model.train()
    optimizer = torch.optim.AdamW(vlm.model.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    for phase in phases:
        started, losses = time.time(), []
        for step in range(phase.steps):
            for group in optimizer.param_groups:
                group["lr"] = phase.peak_rate * _schedule(step, phase.steps)
            losses.append(_train_step(vlm, optimizer, [phase.example() for _ in range(batch_size)]))
            if (step + 1) % 50 == 0:
                recent = sum(losses[-50:]) / 50
                print(
                    f"{phase.name}: step {step + 1}/{phase.steps} loss {recent:.4f} {time.time() - started:.0f}s",
                    flush=True,
                )
    vlm.model.eval()


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 30)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _train_step(vlm: VisionLanguageModel, optimizer: torch.optim.Optimizer, examples: list[Example]) -> float:
    prompts = [encode_prompt(vlm, example.prompt) for example in examples]
    end = [vlm.end_ids[0]]
    responses = [vlm.tokenizer(example.response)["input_ids"] + end for example in examples]
    batch = response_batch(vlm, prompts, responses)
    logprobs_BT = plain_logprobs(vlm, batch, temperature=1.0)
    loss = -logprobs_BT.sum() / batch.response_mask_BT.sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def make_problems(
    name: str, pool: Handwriting, count: int, lengths: tuple[int, int], rng: np.random.Generator
) -> list[Row]:
    """Rows of `problems`, kinds in turn, with `digits` for the makers of worked answers alone."""
    rows: list[Row] = []
    for index in range(count):
        kind = list(QUESTIONS)[index % len(QUESTIONS)]
        strip = random_strip(pool, lengths, rng)
        rows.append(
            {
                "problem_id": f"{name}-{index:05d}",
                "question": QUESTIONS[kind],
                "images": [encode_image(strip.image)],
                "image": strip.image.convert("RGB"),
                "answer": str(gold_answer(kind, strip.digits)),
                "kind": kind,
                "digits": strip.digits,
            }
        )
    return rows


def answers_of(vlm: VisionLanguageModel, rows: Sequence[Row], n: int, sampling: Sampling) -> list[list[str]]:
    """n answers to each problem."""
    engine = TransformersEngine(vlm, rows_per_batch=512)
    problems = [Problem.asking(row["question"], [row["image"]]) for row in rows]
    requests = [Request(policy_prompt(vlm.processor, PROMPTS, problem), n) for problem in problems]
    completions = engine.generate(requests, sampling)
    return [[vlm.decode(completion.ids) for completion in group] for group in completions]


def measure(vlm: VisionLanguageModel, test: Sequence[Row], max_new_tokens: int, temperature: float, seed: int) -> None:
    """Print how good a base is when it decodes greedily, and when it samples eight answers."""
    for at, n in ((0.0, 1), (temperature, 8)):
        answers = answers_of(vlm, test, n, Sampling(max_new_tokens, at, seed))
        report(test, answers, f"base on test, temperature {at}")


@dataclass(frozen=True)
class Repairs:
    """Wrong answers of a base policy, one a problem, each with the worked answer it should have been."""

    vlm: VisionLanguageModel
    lengths: tuple[int, int]
    repaired: Repaired
    max_new_tokens: int
    temperature: float
    rng: np.random.Generator

    def repair_set(self, pools: Mapping[str, Handwriting]) -> list[Row]:
        """1,000 rows; the last tenth, which is held out from training, in handwriting of its own."""
        repairs = self._of(pools["repair"], 900) + self._of(pools["heldout"], 100)
        return [row | {"problem_id": f"repair-{index:05d}"} for index, row in enumerate(repairs)]

    def _of(self, pool: Handwriting, count: int) -> list[Row]:
        found: list[Row] = []
        while len(found) < count:
            rows = make_problems("repair", pool, count, self.lengths, self.rng)
            sampling = Sampling(self.max_new_tokens, self.temperature, seed=len(found))
            for row, (error,) in zip(rows, answers_of(self.vlm, rows, 1, sampling), strict=True):
                if score_answer(error, row["answer"]) == 0.0:
                    found.append(row | {"error": error, "repair": self.repaired(row["kind"], row["digits"], error)})
        return found[:count]


def tokenizer_texts(rng: np.random.Generator, right: Callable[[str, Sequence[int]], str]) -> list[str]:
    """What a tokenizer for these examples is trained on."""
    texts = [
        READ,
        PROMPTS.repair_instruction,
        PROMPTS.reference_instruction.replace("{reference}", "5"),
        "user\nassistant\n",
    ] * 400
    for _ in range(400):
        for kind, question in QUESTIONS.items():
            texts += [question, right(kind, rng.integers(0, 10, 4).tolist())]
    return texts


def report(rows: Sequence[Row], answers: Sequence[Sequence[str]], name: str) -> None:
    """Print pass@1 and pass@n of n answers to each problem, by kind."""
    right, solved, total = Counter[str](), Counter[str](), Counter[str]()
    for row, texts in zip(rows, answers, strict=True):
        scores = [score_answer(text, row["answer"]) == 1.0 for text in texts]
        for key in (row["kind"], "all"):
            right[key] += sum(scores)
            solved[key] += any(scores)
            total[key] += 1
    n = len(answers[0])
    for key, count in total.items():
        print(f"{name}, {key}: pass@1 {right[key] / count / n:.3f} pass@{n} {solved[key] / count:.3f} n={count}")
