"""The policy's answers: problems, policy -> rollouts (eq. 11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.artifacts.columns import ROLLOUTS
from stages.artifacts.problems import Problem, ProblemSet
from stages.artifacts.step import Plan, Step
from stages.batching import batched
from stages.core.selection import is_correct
from stages.engines.loading import check_model, open_engine, recipe_sampling, with_engine
from stages.progress import Advance, track
from stages.recipe import Recipe
from stages.scoring.answering import Answer, Answerer, Shard
from stages.scoring.rewards import check_reward, open_reward
from stages.seeds import Purpose, derive_seed


@dataclass(frozen=True)
class Rollout:
    """`df rollout`."""

    recipe: Recipe
    problems: Path
    policy: Path

    def plan(self) -> Plan:
        check_reward(self.recipe.reward)
        ProblemSet(self.problems)
        check_model(self.policy)
        recipe = with_engine(self.recipe).subset("model", "engine", "prompt", "reward", "rollout")
        return Plan("rollout", recipe, self.recipe.seed, {"problems": self.problems, "policy": self.policy})

    def run(self, step: Step) -> None:
        recipe, section = self.recipe, self.recipe.rollout
        problems = ProblemSet(self.problems)
        ids = problems.draw(section.problems, derive_seed(recipe.seed, Purpose.ROLLOUT_PROBLEMS))
        with step.ledger.phase("load"):
            engine = open_engine(self.policy, recipe)
        with (
            open_reward(recipe.reward) as reward,
            track("rollout", len(ids) * section.samples_per_problem, "responses") as advance,
        ):
            answerer = Answerer(engine, recipe.prompt, reward, step.ledger)
            shards = self._shards(step, problems, ids, advance)
            for shard, groups in answerer.answer_each(shards, section.samples_per_problem):
                self._write(step, shard.index, shard.problems, groups)
                advance(len(shard.problems) * section.samples_per_problem)
        step.finish()

    def _shards(self, step: Step, problems: ProblemSet, ids: Sequence[str], advance: Advance) -> Iterator[Shard]:
        """Those that no stopped run has finished."""
        samples = self.recipe.rollout.samples_per_problem
        for index, names in enumerate(batched(ids, max(1, self.recipe.rollout.rows_per_shard // samples))):
            if step.has_shard(ROLLOUTS, index):
                advance(len(names) * samples)
            else:
                yield Shard(index, problems.many(names), recipe_sampling(self.recipe, Purpose.ROLLOUTS, index))

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
