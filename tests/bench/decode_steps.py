"""Decode steps of a rollout, drained after each shard and fed continuously.

    PYTHONPATH=.:tests/support python tests/bench/decode_steps.py [--digits]

A step writes one token of every row. Simulated: lengths are lognormal (median 300 tokens, sigma 0.65, at most 2,048),
the rows of a problem go to one GPU, and all GPUs wait for the last one where a shard is drained. Fed, each goes through
its own problems by the product's `Feed` at its own pace; means over ten seeds. Counted, with `--digits`: the embedded
engine's passes over the problems of the digits' recipe, shard by shard and as one batch, with seconds of CPU on one
thread.
"""

from __future__ import annotations

import stages.model  # noqa: F401, before transformers  # isort: skip

import argparse
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from seats import Seats
from stages.artifacts.problems import ProblemSet
from stages.engines.decoding import Decoder, Numbered
from stages.engines.feed import Feed
from stages.engines.protocol import Request, Sampling
from stages.engines.vllm_engine import PROMPTS_AT_ONCE
from stages.model.loading import VisionLanguageModel, load_model
from stages.model.prompts import policy_prompt
from stages.recipe import Recipe, load_recipe
from stages.runtime.batching import batched

MEDIAN, SIGMA, LONGEST = 300, 0.65, 2048
SEEDS = 10
DIGITS = Path("data/digits")


@dataclass(frozen=True)
class Case:
    name: str
    problems: int
    samples: int
    per_shard: int
    """Problems of a shard."""
    gpus: int = 8
    seats: int = 256
    """Rows that an engine runs side by side."""

    def shards(self, seed: int) -> list[list[list[int]]]:
        """The lengths that each GPU writes of each shard."""
        rng = np.random.default_rng(seed)
        drawn = np.exp(rng.normal(np.log(MEDIAN), SIGMA, (self.problems, self.samples)))
        lengths = np.clip(drawn.astype(int), 1, LONGEST).tolist()
        return [
            [[length for problem in shard[gpu :: self.gpus] for length in problem] for gpu in range(self.gpus)]
            for shard in batched(lengths, self.per_shard)
        ]

    def drained(self, seed: int) -> int:
        return sum(max(map(self._steps_alone, of_gpus)) for of_gpus in self.shards(seed))

    def fed(self, seed: int) -> int:
        return max(map(self._steps_fed, zip(*self.shards(seed), strict=True)))

    def _steps_alone(self, lengths: Sequence[int]) -> int:
        """Each row takes the seat that is free first."""
        free_at = [0] * self.seats
        for length in lengths:
            heapq.heappush(free_at, heapq.heappop(free_at) + length)
        return max(free_at)

    def _steps_fed(self, batches: Sequence[Sequence[int]]) -> int:
        engine = Seats(self.seats)
        assert list(Feed(engine, PROMPTS_AT_ONCE * self.samples).run(batches)) == list(map(list, batches))
        return engine.steps


CASES = (
    Case("rollout of the 7B recipe: 128 problems, 8 samples, 256 rows a shard", 128, 8, 32),
    Case("the same where 64 rows fit beside each other", 128, 8, 32, seats=64),
    Case("the same on one GPU", 128, 8, 32, gpus=1),
    Case("rollout of 2,000 problems, 8 samples, 256 rows a shard", 2000, 8, 32),
    Case("greedy evaluation of 5,000 problems, 256 a shard", 5000, 1, 256),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", action="store_true", help="count the embedded engine's passes too")
    options = parser.parse_args()
    table = Table("simulated", "drained", "fed", "ratio")
    for case in CASES:
        drained, fed = (mean(map(steps, range(SEEDS))) for steps in (case.drained, case.fed))
        table.add_row(case.name, f"{drained:,.0f}", f"{fed:,.0f}", f"{drained / fed:.2f}")
    Console().print(table)
    if options.digits:
        Console().print(digits())


def digits() -> Table:
    """The rollout of the digits' recipe, in shards and as one batch."""
    torch.set_num_threads(1)
    recipe, vlm = load_recipe("digits"), load_model(DIGITS / "base")
    section = recipe.rollout
    problems = ProblemSet(DIGITS / "problems_train.parquet")
    numbered = [
        Numbered(number, Request(policy_prompt(vlm.processor, recipe.prompt, problem), section.samples_per_problem))
        for number, problem in enumerate(problems.many(problems.ids[: section.problems]))
    ]
    per_shard = section.rows_per_shard // section.samples_per_problem
    table = Table("embedded engine, digits", "passes", "seconds of CPU")
    for name, size in (("in shards", per_shard), ("as one batch", len(numbered))):
        table.add_row(name, *map(str, _counted(vlm, recipe, list(batched(numbered, size)))))
    return table


def _counted(vlm: VisionLanguageModel, recipe: Recipe, shards: Sequence[Sequence[Numbered]]) -> tuple[int, float]:
    """Passes but for those that read prompts, and seconds."""
    passes: list[bool] = []
    watched = vlm.model.base_model.register_forward_pre_hook(
        lambda _, __, given: passes.append(given["cached"].block is not None), with_kwargs=True
    )
    engine, section = recipe.engine, recipe.rollout
    decoder = Decoder(vlm, rows=engine.rows_per_batch, prompt_tokens=engine.tokens_per_batch, draft_block=None)
    started = time.process_time()
    with torch.inference_mode():
        for shard in shards:
            decoder.generate(shard, Sampling(section.max_new_tokens, section.temperature, seed=1))
    watched.remove()
    return sum(passes), round(time.process_time() - started, 1)


if __name__ == "__main__":
    main()
