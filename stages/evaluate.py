"""How good a model is: problems, any model -> scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import SCORES, SUMMARY
from stages.artifacts.plan import Input, Plan
from stages.artifacts.problems import PROBLEMS_AT_ONCE, Problem, ProblemSet, open_problems
from stages.artifacts.rows import ScoreRow
from stages.artifacts.step import Step
from stages.artifacts.store import iterate_rows
from stages.checks.problem_check import ProblemCheck
from stages.core.selection import is_correct
from stages.declared import declare_evaluate
from stages.engines.loading import with_engine
from stages.engines.models import Models
from stages.engines.protocol import Sampling
from stages.measures.scores import summarize_by_kind, summarize_scores
from stages.recipe import Recipe
from stages.repair.answering import Answer, Answerer, Shard
from stages.repair.image_removal import without_image
from stages.reward.lost_answers import Response, count_lost, warn_of_none_right
from stages.reward.opening import check_reward, open_reward
from stages.runtime.batching import batched
from stages.runtime.progress import Advance, track
from stages.seeds import Purpose, derive_seed


class Mode(NamedTuple):
    """One way of answering every problem: `draws` responses a problem at a temperature, with or without its image.

    `name` is what `scores` has in its column `mode`.
    """

    name: str
    draws: int
    temperature: float
    blank_image: bool = False


@dataclass(frozen=True)
class Evaluate:
    """`df evaluate`."""

    recipe: Recipe
    problems: Path
    model: Path
    on_bad_row: OnBadRow = "fail"
    models: Models = field(default_factory=Models)

    @cached_property
    def usable(self) -> ProblemSet:
        """The problems, each looked at."""
        problems = open_problems(self.problems, self.on_bad_row)
        check = ProblemCheck(self.recipe, self.models.codec(self.model, self.recipe))
        return check.usable(problems, problems.ids, self.on_bad_row)

    @cached_property
    def declared(self) -> Plan:
        return declare_evaluate(with_engine(self.recipe), self.problems, self.model)

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        check_reward(self.recipe.reward)
        return replace(self.declared, dropped=self.usable.bad)

    def run(self, step: Step) -> None:
        recipe = self.recipe
        with step.ledger.phase("load"):
            engine = self.models.engine_alone(self.model, recipe)
        modes = list(self._modes())
        parts = list(product(modes, batched(self.usable.ids, PROBLEMS_AT_ONCE)))
        with (
            open_reward(recipe.reward) as reward,
            track("evaluate", len(self.usable) * sum(mode.draws for mode in modes), "answers") as advance,
        ):
            answerer = Answerer(engine, recipe.prompt, reward, step.ledger)
            for shard, groups in answerer.answer_each(self._shards(step, parts, advance)):
                mode, _ = parts[shard.index]
                rows = _rows(shard.problems, groups, mode, step)
                if not mode.blank_image:
                    self._count(groups, step.tally.counts)
                step.write_shards(shard.index, {SCORES: rows})
                advance(len(shard.problems) * mode.draws)
        scores = list(iterate_rows(step.out, SCORES))
        threshold = recipe.reward.threshold
        measures = summarize_scores("overall", scores, threshold) + summarize_by_kind("by kind", scores, threshold)
        step.write_table(SUMMARY, [measure._asdict() for measure in measures])
        step.tally.rows_in = len(self.usable)
        warn_of_none_right(self.problems, step.tally.counts, recipe)
        step.finish()

    def _count(self, groups: Sequence[Sequence[Answer]], counts: Counter[str]) -> None:
        """Answers with the image, right ones and what tells why there are none."""
        answers = [answer for group in groups for answer in group]
        count_lost(counts, self.recipe, (Response(a.text, a.completion.finish_reason) for a in answers))
        counts["correct"] += sum(is_correct(answer.reward, self.recipe.reward.threshold) for answer in answers)

    def _modes(self) -> Iterator[Mode]:
        yield Mode("greedy", 1, 0.0)
        yield Mode("sampled", self.recipe.evaluate.draws, self.recipe.rollout.temperature)
        if self.recipe.evaluate.image_removed:
            yield Mode("image_removed", 1, 0.0, blank_image=True)

    def _shards(self, step: Step, parts: Sequence[tuple[Mode, Sequence[str]]], advance: Advance) -> Iterator[Shard]:
        """Those that no stopped run has finished."""
        for index, (mode, ids) in enumerate(parts):
            if step.has_shard(SCORES, index):
                advance(len(ids) * mode.draws)
                continue
            problems = self.usable.many(ids)
            if mode.blank_image:
                problems = [without_image(problem, self.recipe.repair_rl.blank) for problem in problems]
            seed = derive_seed(self.recipe.seed, Purpose.EVALUATION, index)
            sampling = Sampling(self.recipe.rollout.max_new_tokens, mode.temperature, seed)
            yield Shard(index, problems, mode.draws, sampling)


def _rows(problems: Sequence[Problem], groups: Sequence[Sequence[Answer]], mode: Mode, step: Step) -> list[ScoreRow]:
    rows: list[ScoreRow] = [
        {
            "problem_id": problem.problem_id,
            "kind": problem.kind,
            "mode": mode.name,
            "draw": draw,
            "text": answer.text,
            "reward": answer.reward,
        }
        for problem, group in zip(problems, groups, strict=True)
        for draw, answer in enumerate(group)
    ]
    step.tally.rows_out += len(rows)
    step.tally.dropped["prompt_too_long"] += sum(not group for group in groups)
    step.tally.dropped["unscored"] += sum(row["reward"] is None for row in rows)
    return rows
