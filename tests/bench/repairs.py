"""Responses a second of the embedded engine's loop, with and without drafts, beside transformers' own `generate`.

    python tests/bench/repairs.py [--long 16] [--rows 4] [--repeats 1] [--out runs/bench]

On the CPU, one thread. Rollouts are the digits base's. Repairs are those of an embedded example's errors, by a repair
model that is trained first, as `df sft-repair` does by the example's recipe; it stays under runs/bench/repair-models,
and is not trained again. The long responses are 300 tokens of a random model; their drafts are these responses after
edits of one to three tokens, replaced, left out or put in, until so many tokens in a hundred are edited. All sides draw
the same numbers, so they write the same responses, which is checked; a long one that another order of summing changes
(all of it from there on: the model is random) is left out beforehand. Times are of CPU: the machine may have other
work. Writes repairs.json.
"""

from __future__ import annotations

import stages.model  # noqa: F401, before transformers  # isort: skip

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tiny_vlm import VOCABULARY, describe, random_image, tiny_model, tiny_processor

from stages.artifacts.columns import REPAIR_SET
from stages.artifacts.manifests import model_folder
from stages.artifacts.problems import Problem, ProblemSet
from stages.artifacts.stage import execute
from stages.engines.decoding import DRAFT_BLOCKS, Decoder, Numbered
from stages.engines.plain_generate import PlainGenerate
from stages.engines.protocol import Completion, Request, Sampling
from stages.model.loading import VisionLanguageModel, load_model, wrap_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.repair.repairs import Repairer
from stages.s1_sft_repair import SftRepair
from stages.training.heldout import annotated_draft

DIGITS = Path("data/digits")
EXAMPLES = ("digits", "long_digits", "worded_digits")
PROMPT_TOKENS = 340
IMAGE = (8, 4)
"""Visual tokens, columns by rows; they come on top."""
SHARPNESS = 0.2
"""Temperature: at 1 a random model gives all 32,000 tokens much the same chance, and roundings would decide."""
SAME_SHARE = 0.9
RESPONSE_TOKENS = 300
EDITED_PERCENT = (5, 10, 20)

Generate = Callable[[Sequence[Numbered], Sampling], list[list[Completion]]]


@dataclass(frozen=True)
class Case:
    name: str
    vlm: VisionLanguageModel
    rows: int
    requests: list[Request]
    sampling: Sampling
    with_drafts: bool = True

    def sides(self) -> dict[str, tuple[Generate, bool]]:
        """How to generate, and whether it is told the drafts."""
        tokens = 16384
        plain = PlainGenerate(self.vlm, rows=self.rows).generate
        loop = Decoder(self.vlm, rows=self.rows, prompt_tokens=tokens, draft_block=DRAFT_BLOCKS["cpu"]).generate
        drafted = {"loop, drafts verified": (loop, True)} if self.with_drafts else {}
        return {"transformers' generate": (plain, False), "loop": (loop, False), **drafted}


@dataclass
class Measured:
    responses: int
    tokens: int
    cpu_seconds: float
    passes: int
    tokens_read: int
    """Padding included, prompts apart."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", type=int, default=16, help="long responses")
    parser.add_argument("--rows", type=int, default=4, help="of them at once")
    parser.add_argument("--repeats", type=int, default=1, help="of which the fastest counts")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = tiny_model(0)
    cases = [
        rollouts(),
        *(repairs(example, options.out / "repair-models" / example) for example in EXAMPLES),
        *long_repairs(model, options.long, options.rows),
    ]
    results = {case.name: measure_case(case, options.repeats) for case in cases}
    show(results, describe(model))
    report = {"load_1_min": os.getloadavg()[0], "torch": torch.__version__, "model": describe(model)}
    told = {name: {side: vars(measured) for side, measured in sides.items()} for name, sides in results.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "repairs.json").write_text(json.dumps(report | {"cases": told}, indent=1) + "\n", encoding="utf-8")


def rollouts() -> Case:
    """Eight of each of 64 digits problems, as `df rollout` samples them."""
    recipe, vlm = load_recipe("digits"), load_model(DIGITS / "base")
    problems = ProblemSet(DIGITS / "problems_test.parquet")
    requests = [Request(policy_prompt(vlm.processor, recipe.prompt, p), 8) for p in problems.many(problems.ids[:64])]
    sampling = Sampling(recipe.rollout.max_new_tokens, recipe.rollout.temperature)
    return Case("digits, rollouts", vlm, recipe.engine.rows_per_batch, requests, sampling, with_drafts=False)


def repairs(example: str, model: Path) -> Case:
    """Two of each of 256 errors of an example's repair set, as `df build-masks` samples them; every token is drawn.

    The repair model is trained in the folder, unless it is there.
    """
    recipe, data = load_recipe(example), Path("data") / example
    execute(SftRepair(recipe, data / "repair_set.parquet", data / "base"), model)
    vlm = load_model(model_folder(model))
    problems = ProblemSet(data / "repair_set.parquet", REPAIR_SET)
    drafts = [annotated_draft(vlm, problem) for problem in problems.many(problems.ids[-256:])]
    repairer = Repairer(_Named(vlm), recipe.prompt, None, None)
    requests = [Request(repairer.prompt(draft), 2, draft.ids) for draft in drafts]
    sampling = Sampling(recipe.rollout.max_new_tokens, recipe.rollout.temperature)
    return Case(f"{example}, repairs", vlm, recipe.engine.rows_per_batch, requests, sampling)


@dataclass(frozen=True)
class _Named:
    """All that prompts need of an engine."""

    codec: VisionLanguageModel


def long_repairs(model: Any, count: int, rows: int) -> list[Case]:
    vlm = wrap_model(model, tiny_processor())
    rng = np.random.default_rng(0)
    problems = [Problem.asking(words(rng), [random_image(*IMAGE, rng)]) for _ in range(count)]
    prompts = [policy_prompt(vlm.processor, load_recipe("digits").prompt, problem) for problem in problems]
    sampling = Sampling(RESPONSE_TOKENS, SHARPNESS)

    def write(drafts: Sequence[Sequence[int]], block: int) -> list[list[int]]:
        decoder = Decoder(vlm, rows=rows, prompt_tokens=16384, draft_block=block)
        requests = [Numbered(n, Request(p, 1, d)) for n, (p, d) in enumerate(zip(prompts, drafts, strict=True))]
        with torch.inference_mode():
            return [group[0].ids for group in decoder.generate(requests, sampling)]

    responses = write([()] * count, 1)
    again = write(responses, DRAFT_BLOCKS["cpu"])
    # Numbers go by a request's place, so what is left out stays in the list and asks for nothing.
    asked = [int(own == other) for own, other in zip(responses, again, strict=True)]
    return [
        Case(
            f"300 tokens, {percent}% edited",
            vlm,
            rows,
            [
                Request(prompt, n, edited(ids, percent, rng))
                for prompt, n, ids in zip(prompts, asked, responses, strict=True)
            ],
            sampling,
        )
        for percent in EDITED_PERCENT
    ]


def words(rng: np.random.Generator) -> str:
    return " ".join(f"w{index}" for index in rng.integers(6, VOCABULARY, PROMPT_TOKENS))


def edited(ids: Sequence[int], percent: int, rng: np.random.Generator) -> list[int]:
    """The response with so many of its tokens in spans that are replaced, left out or followed by others."""
    pieces = list(ids)
    wanted = len(ids) * percent // 100
    # From the end on, so that places stay what they are.
    for place in sorted(rng.choice(len(ids) // 4, max(1, wanted // 2), replace=False) * 4, reverse=True):
        size = min(int(rng.integers(1, 4)), wanted)
        wanted -= size
        new = rng.integers(6, VOCABULARY, size).tolist()
        kind = rng.integers(3)
        pieces[place : place + (0 if kind == 0 else size)] = [] if kind == 1 else new
    return pieces


def measure_case(case: Case, repeats: int) -> dict[str, Measured]:
    measured: dict[str, Measured] = {}
    expected: list[list[int]] | None = None
    for side, (generate, told) in case.sides().items():
        requests = [
            Numbered(number, request if told else replace(request, draft_ids=()))
            for number, request in enumerate(case.requests)
        ]
        tries = [measure(case.vlm, generate, requests, case.sampling) for _ in range(repeats)]
        found = [completion.ids for group in tries[0][1] for completion in group]
        expected = expected or found
        same = sum(map(list.__eq__, found, expected)) / len(found)
        assert same >= SAME_SHARE, f"{case.name}, {side}: {1 - same:.0%} other responses"
        measured[side] = min((own for own, _ in tries), key=lambda own: own.cpu_seconds)
        print(f"{case.name}, {side}: {measured[side]}", flush=True)
    return measured


@torch.inference_mode()
def measure(
    vlm: VisionLanguageModel, generate: Generate, requests: Sequence[Numbered], sampling: Sampling
) -> tuple[Measured, list[list[Completion]]]:
    read: list[int] = []

    def see(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        cached = kwargs.get("cached")
        if cached is None or cached.block is not None:
            read.append(kwargs["input_ids"].numel())

    hook = vlm.model.base_model.register_forward_pre_hook(see, with_kwargs=True)
    started = time.process_time()
    groups = generate(requests, sampling)
    seconds = time.process_time() - started
    hook.remove()
    lengths = [len(completion.ids) for group in groups for completion in group]
    return Measured(len(lengths), sum(lengths), seconds, len(read), sum(read)), groups


def show(results: dict[str, dict[str, Measured]], model: str) -> None:
    table = Table("case", "side", "responses / CPU second", "times", "passes", "tokens read / written", title=model)
    for name, sides in results.items():
        slowest = next(iter(sides.values())).cpu_seconds
        for side, own in sides.items():
            rate, ratio = own.responses / own.cpu_seconds, slowest / own.cpu_seconds
            read = "" if side == next(iter(sides)) else f"{own.tokens_read / own.tokens:.2f}"
            table.add_row(name, side, f"{rate:.1f}", f"{ratio:.2f}", str(own.passes), read)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
