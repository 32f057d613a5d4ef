"""The policy's answers: problems, policy -> rollouts (eq. 11)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import ROLLOUTS
from stages.artifacts.plan import Input, Plan
from stages.artifacts.problems import Problem, ProblemSet, open_problems
from stages.artifacts.rows import RolloutRow
from stages.artifacts.step import Step
from stages.checks.problem_check import ProblemCheck
from stages.core.selection import is_correct
from stages.declared import declare_rollout
from stages.engines.loading import recipe_sampling, with_engine
from stages.engines.maker import maker
from stages.engines.models import Models
from stages.errors import DataError
from stages.model.codec import Codec
from stages.recipe import Recipe
from stages.repair.answering import Answer, Answerer, Shard
from stages.reward.lost_answers import Response, count_lost, warn_of_none_right
from stages.reward.opening import check_reward, open_reward
from stages.runtime.batching import batched
from stages.runtime.progress import Advance, track
from stages.seeds import Purpose, derive_seed


@dataclass(frozen=True)
class Rollout:
    """`df rollout`."""

    recipe: Recipe
    problems: Path
    policy: Path
    on_bad_row: OnBadRow = "fail"
    models: Models = field(default_factory=Models)

    @cached_property
    def usable(self) -> ProblemSet:
        """The problems that are drawn, each looked at."""
        problems = open_problems(self.problems, self.on_bad_row)
        drawn = problems.draw(self.recipe.rollout.problems, derive_seed(self.recipe.seed, Purpose.ROLLOUT_PROBLEMS))
        return ProblemCheck(self.recipe, self._codec).usable(problems, drawn, self.on_bad_row)

    @cached_property
    def _codec(self) -> Codec:
        return self.models.codec(self.policy, self.recipe)

    @cached_property
    def declared(self) -> Plan:
        return declare_rollout(with_engine(self.recipe), self.problems, self.policy)

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        check_reward(self.recipe.reward, needed=False)
        made_by = maker(self.policy, self._codec, self.recipe)
        return replace(self.declared, recipe={**self.declared.recipe, **made_by}, dropped=self.usable.bad)

    def run(self, step: Step) -> None:
        recipe, section = self.recipe, self.recipe.rollout
        with step.ledger.phase("load"):
            engine = self.models.engine_alone(self.policy, recipe)
        with (
            open_reward(recipe.reward) as reward,
            track("rollout", len(self.usable) * section.samples_per_problem, "responses") as advance,
        ):
            answerer = Answerer(engine, recipe.prompt, reward, step.ledger)
            shards = self._shards(step, advance)
            for shard, groups in answerer.answer_each(shards):
                self._write(step, shard.index, shard.problems, groups)
                advance(len(shard.problems) * section.samples_per_problem)
        if not step.tally.rows_out:
            raise DataError(f"{self.problems}: no rows left; {self._no_room('every')}")
        warn_of_none_right(self.problems, step.tally.counts, recipe)
        step.finish()

    def _shards(self, step: Step, advance: Advance) -> Iterator[Shard]:
        """Those that no stopped run has finished."""
        samples = self.recipe.rollout.samples_per_problem
        for index, names in enumerate(batched(self.usable.ids, max(1, self.recipe.rollout.rows_per_shard // samples))):
            if step.has_shard(ROLLOUTS, index):
                advance(len(names) * samples)
            else:
                sampling = recipe_sampling(self.recipe, Purpose.ROLLOUTS, index)
                yield Shard(index, self.usable.many(names), samples, sampling)

    def _no_room(self, whose: str) -> str:
        tokens = self.recipe.rollout.max_new_tokens
        return (
            f"{whose} prompt and rollout.max_new_tokens ({tokens}) are more than the model takes; lower it, or "
            "model.max_pixels, or take shorter questions"
        )

    def _write(self, step: Step, index: int, problems: Sequence[Problem], groups: Sequence[Sequence[Answer]]) -> None:
        rows = [
            _row(problem, sample, answer)
            for problem, group in zip(problems, groups, strict=True)
            for sample, answer in enumerate(group)
        ]
        step.tally.rows_in += len(problems)
        step.tally.rows_out += len(rows)
        for problem, group in zip(problems, groups, strict=True):
            if not group:
                step.drop(problem.problem_id, "prompt_too_long", self._no_room(f"problem {problem.problem_id}: its"))
        count_lost(step.tally.counts, self.recipe, (Response(row["text"], row["finish_reason"]) for row in rows))
        step.tally.counts["unscored"] += sum(row["reward"] is None for row in rows)
        step.tally.counts["correct"] += sum(is_correct(row["reward"], self.recipe.reward.threshold) for row in rows)
        step.write_shards(index, {ROLLOUTS: rows})


def _row(problem: Problem, sample: int, answer: Answer) -> RolloutRow:
    return {
        "problem_id": problem.problem_id,
        "sample": sample,
        "ids": answer.completion.ids,
        "sampler_logprobs": answer.completion.logprobs,
        "finish_reason": answer.completion.finish_reason,
        "reward": answer.reward,
        "text": answer.text,
    }
