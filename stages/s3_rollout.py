"""The policy's answers: problems, policy -> rollouts (eq. 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import ROLLOUTS
from stages.artifacts.problems import Problem, ProblemSet
from stages.artifacts.step import Plan, Step
from stages.batching import batched
from stages.core.selection import is_correct
from stages.engines.loading import open_codec, open_engine, recipe_sampling, with_engine
from stages.model.codec import Codec
from stages.progress import track
from stages.recipe import Recipe
from stages.scoring.answering import Answer, Answerer
from stages.scoring.rewards import check_reward, open_reward
from stages.scoring.usable import ProblemCheck
from stages.seeds import Purpose, derive_seed


@dataclass(frozen=True)
class Rollout:
    """`df rollout`."""

    recipe: Recipe
    problems: Path
    policy: Path
    on_bad_row: OnBadRow = "fail"

    @cached_property
    def usable(self) -> ProblemSet:
        """The problems that are drawn, each looked at."""
        problems = ProblemSet(self.problems, on_bad_row=self.on_bad_row)
        drawn = problems.draw(self.recipe.rollout.problems, derive_seed(self.recipe.seed, Purpose.ROLLOUT_PROBLEMS))
        return ProblemCheck(self.recipe, self._codec).usable(problems, drawn, self.on_bad_row)

    @cached_property
    def _codec(self) -> Codec:
        return open_codec(self.policy, self.recipe)

    def plan(self) -> Plan:
        check_reward(self.recipe.reward, needed=False)
        recipe = with_engine(self.recipe).subset("model", "engine", "prompt", "reward", "rollout")
        inputs = {"problems": self.problems, "policy": self.policy}
        vocabulary = {"vocabulary": self._codec.vocabulary_sha256}
        return Plan("rollout", recipe | vocabulary, self.recipe.seed, inputs, self.usable.bad)

    def run(self, step: Step) -> None:
        recipe, section = self.recipe, self.recipe.rollout
        problems = self.usable
        per_shard = max(1, section.rows_per_shard // section.samples_per_problem)
        with step.ledger.phase("load"):
            engine = open_engine(self.policy, recipe)
        with (
            open_reward(recipe.reward) as reward,
            track("rollout", len(problems) * section.samples_per_problem, "responses") as advance,
        ):
            answerer = Answerer(engine, recipe.prompt, reward, step.ledger)
            for index, shard in enumerate(batched(problems.ids, per_shard)):
                if not step.has_shard(ROLLOUTS, index):
                    sampling = recipe_sampling(recipe, Purpose.ROLLOUTS, index)
                    chosen = problems.many(shard)
                    groups = answerer.answer(chosen, section.samples_per_problem, sampling)
                    self._write(step, index, chosen, groups)
                advance(len(shard) * section.samples_per_problem)
        step.finish()

    def _write(self, step: Step, index: int, problems: Sequence[Problem], groups: Sequence[Sequence[Answer]]) -> None:
        rows = [
            _row(problem, sample, answer)
            for problem, group in zip(problems, groups, strict=True)
            for sample, answer in enumerate(group)
        ]
        step.tally.rows_in += len(problems)
        step.tally.rows_out += len(rows)
        step.tally.dropped["prompt_too_long"] += sum(not group for group in groups)
        step.tally.counts["unscored"] += sum(row["reward"] is None for row in rows)
        step.tally.counts["correct"] += sum(is_correct(row["reward"], self.recipe.reward.threshold) for row in rows)
        step.write_shards(index, {ROLLOUTS: rows})


def _row(problem: Problem, sample: int, answer: Answer) -> dict[str, Any]:
    return {
        "problem_id": problem.problem_id,
        "sample": sample,
        "ids": answer.completion.ids,
        "sampler_logprobs": answer.completion.logprobs,
        "finish_reason": answer.completion.finish_reason,
        "reward": answer.reward,
        "text": answer.text,
    }
