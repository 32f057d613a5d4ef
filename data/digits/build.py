"""Regenerates everything in this folder: handwriting problems, the base policy, the repair set.

    python data/digits/build.py [--out DIR]

Deterministic on one machine: one thread, fixed seeds. README.md beside this file says what was made and how.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from handwriting import Handwriting, load_pools
from stages.artifacts.columns import PROBLEMS, REPAIR_SET
from stages.artifacts.problems import encode_image
from stages.artifacts.store import write_rows
from stages.engines.protocol import Request, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.model.batches import encode_prompt, response_batch
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import Prompt, policy_prompt, repair_prompt
from stages.recipe import load_recipe
from stages.scoring.answers import score_answer
from tiny_model import plain_logprobs, tiny_qwen2_5_vl, train_tokenizer
from worked import QUESTIONS, Slips, gold_answer, no_slips, reading, worked_answer

SEED = 27482
PROMPTS = load_recipe("digits").prompt
TRAIN_PROBLEMS, TEST_PROBLEMS = 2400, 600
TEMPERATURE = 0.7
BATCH = 64
Row = dict[str, Any]
READ = "Read the digits."
SLIP_READING, SLIP_STEP = 0.22, 0.19
"""How often the base policy's second diet goes wrong in a reading and in a step."""
PROOFREADING = 0.1
"""Share of the worked phases that is proofreading: a draft with slips, to be written again without."""


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


class Curriculum:
    """What the base policy sees, in order."""

    def __init__(self, vlm: VisionLanguageModel, pool: Handwriting, rng: np.random.Generator) -> None:
        self.vlm, self.pool, self.rng = vlm, pool, rng

    def phases(self) -> list[Phase]:
        return [
            Phase("single digits", 150, 2e-3, lambda: self.read(1)),
            Phase("strips", 300, 2e-3, lambda: self.read(self._length())),
            Phase("worked answers", 900, 2e-3, lambda: self.worked(slips=no_slips())),
            Phase("worked answers with slips", 250, 1e-3, lambda: self.worked(slips=self._slips())),
        ]

    def read(self, length: int) -> Example:
        digits = self._digits(length)
        return Example(policy_prompt(self.vlm.processor, PROMPTS, READ, [self._strip(digits)]), reading(digits))

    def worked(self, slips: Slips) -> Example:
        kind = str(self.rng.choice(list(QUESTIONS)))
        digits = self._digits(self._length())
        images = [self._strip(digits)]
        if self.rng.random() >= PROOFREADING:
            prompt = policy_prompt(self.vlm.processor, PROMPTS, QUESTIONS[kind], images)
            return Example(prompt, worked_answer(kind, digits, slips))
        draft = worked_answer(kind, digits, self._slips())
        reference = str(gold_answer(kind, digits)) if self.rng.random() < 0.7 else None
        ids = self.vlm.tokenizer(draft)["input_ids"]
        prompt = repair_prompt(self.vlm.processor, PROMPTS, QUESTIONS[kind], images, ids, reference)
        return Example(prompt, worked_answer(kind, digits, no_slips()))

    def _slips(self) -> Slips:
        return Slips(SLIP_READING, SLIP_STEP, self.rng)

    def _digits(self, length: int) -> list[int]:
        return self.rng.integers(0, 10, length).tolist()

    def _length(self) -> int:
        return int(self.rng.integers(3, 5))

    def _strip(self, digits: list[int]) -> Image.Image:
        return self.pool.strip(digits, self.rng)[0].convert("RGB")


def train_base(vlm: VisionLanguageModel, curriculum: Curriculum) -> None:
    """One pass of AdamW over the curriculum; each phase warms up and decays on its own."""
    vlm.model.train()
    optimizer = torch.optim.AdamW(vlm.model.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    for phase in curriculum.phases():
        started, losses = time.time(), []
        for step in range(phase.steps):
            for group in optimizer.param_groups:
                group["lr"] = phase.peak_rate * _schedule(step, phase.steps)
            losses.append(_train_step(vlm, optimizer, [phase.example() for _ in range(BATCH)]))
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


def make_problems(name: str, pool: Handwriting, count: int, rng: np.random.Generator) -> list[Row]:
    """Rows of `problems`, with `digits` for the makers of worked answers alone."""
    rows: list[Row] = []
    for index in range(count):
        kind = list(QUESTIONS)[index % len(QUESTIONS)]
        digits = rng.integers(0, 10, rng.integers(3, 5)).tolist()
        image, _ = pool.strip(digits, rng)
        rows.append(
            {
                "problem_id": f"{name}-{index:05d}",
                "question": QUESTIONS[kind],
                "images": [encode_image(image)],
                "image": image.convert("RGB"),
                "answer": str(gold_answer(kind, digits)),
                "kind": kind,
                "digits": digits,
            }
        )
    return rows


def answers_of(vlm: VisionLanguageModel, rows: list[Row], n: int, seed: int) -> list[list[str]]:
    engine = TransformersEngine(vlm, rows_per_batch=512)
    requests = [Request(policy_prompt(vlm.processor, PROMPTS, row["question"], [row["image"]]), n) for row in rows]
    completions = engine.generate(requests, Sampling(80, TEMPERATURE, seed))
    return [[vlm.decode(completion.ids) for completion in group] for group in completions]


def make_repairs(vlm: VisionLanguageModel, pool: Handwriting, count: int, rng: np.random.Generator) -> list[Row]:
    """Wrong answers of the base policy, each with the worked answer it should have been."""
    repairs: list[Row] = []
    while len(repairs) < count:
        rows = make_problems("repair", pool, count, rng)
        for row, (error,) in zip(rows, answers_of(vlm, rows, 1, seed=len(repairs)), strict=True):
            if score_answer(error, row["answer"]) == 0.0:
                repair = worked_answer(row["kind"], row["digits"], no_slips())
                repairs.append(row | {"error": error, "repair": repair})
    return repairs[:count]


def make_repair_set(vlm: VisionLanguageModel, pools: dict[str, Handwriting], rng: np.random.Generator) -> list[Row]:
    """1,000 repairs; the last tenth, which is held out from training, in handwriting of its own."""
    repairs = make_repairs(vlm, pools["repair"], 900, rng) + make_repairs(vlm, pools["heldout"], 100, rng)
    return [row | {"problem_id": f"repair-{index:05d}"} for index, row in enumerate(repairs)]


def tokenizer_texts(rng: np.random.Generator) -> list[str]:
    texts = [
        READ,
        PROMPTS.repair_instruction,
        PROMPTS.reference_instruction.replace("{reference}", "5"),
        "user\nassistant\n",
    ] * 400
    for _ in range(400):
        for kind, question in QUESTIONS.items():
            texts += [question, worked_answer(kind, rng.integers(0, 10, 4).tolist(), no_slips())]
    return texts


def report(vlm: VisionLanguageModel, rows: list[Row]) -> None:
    """pass@1 and pass@8 of the base policy at the rollout temperature, by kind."""
    groups = answers_of(vlm, rows, 8, seed=SEED)
    right, solved, total = Counter[str](), Counter[str](), Counter[str]()
    for row, texts in zip(rows, groups, strict=True):
        scores = [score_answer(text, row["answer"]) for text in texts]
        for key in (row["kind"], "all"):
            right[key] += sum(score == 1.0 for score in scores)
            solved[key] += any(score == 1.0 for score in scores)
            total[key] += 1
    for key, count in total.items():
        print(f"base on test, {key}: pass@1 {right[key] / count / 8:.3f} pass@8 {solved[key] / count:.3f} n={count}")


def generators() -> dict[str, np.random.Generator]:
    """An independent stream for each thing that is made."""
    names = ["words", "base", "train", "repair", "test"]
    return dict(zip(names, np.random.default_rng(SEED).spawn(len(names)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    started = time.time()
    rngs, pools = generators(), load_pools(SEED)
    train = make_problems("train", pools["train"], TRAIN_PROBLEMS, rngs["train"])
    test = make_problems("test", pools["test"], TEST_PROBLEMS, rngs["test"])
    for name, rows in (("train", train), ("test", test)):
        write_rows(out / f"problems_{name}.parquet", PROBLEMS, rows)
    vlm = tiny_qwen2_5_vl(train_tokenizer(tokenizer_texts(rngs["words"])), seed=SEED)
    train_base(vlm, Curriculum(vlm, pools["base"], rngs["base"]))
    vlm.save(out / "base")
    report(vlm, test)
    write_rows(out / "repair_set.parquet", REPAIR_SET, make_repair_set(vlm, pools, rngs["repair"]))
    print(f"built {out} in {time.time() - started:.0f}s")


if __name__ == "__main__":
    main()
