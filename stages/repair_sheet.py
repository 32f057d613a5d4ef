"""The repair set, first half: problems, policy -> its errors as a sheet to annotate."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import DRAFTS, ERRORS
from stages.artifacts.label_studio import write_sheet
from stages.artifacts.plan import Input, Plan
from stages.artifacts.problems import PROBLEMS_AT_ONCE, ProblemSet, encoded_images, open_problems
from stages.artifacts.rows import AnyRow
from stages.artifacts.step import Step, Tally
from stages.artifacts.writing import writing
from stages.checks.problem_check import ProblemCheck
from stages.declared import declare_repair_sheet
from stages.engines.loading import alone, open_codec, open_engine, recipe_sampling, with_engine
from stages.errors import DataError
from stages.recipe import Recipe
from stages.repair.answering import Answerer
from stages.repair.repairs import Draft
from stages.repair.wrong_answers import WrongAnswer, draft_row, read_drafts, wrong_answers
from stages.reward.opening import check_reward, open_reward
from stages.runtime import processes
from stages.runtime.batching import batched
from stages.runtime.progress import track
from stages.seeds import Purpose, derive_seed
from stages.untrusted.printable import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RepairSheet:
    """`df repair-set sheet`."""

    recipe: Recipe
    problems: Path
    policy: Path
    count: int
    """Errors wanted."""
    on_bad_row: OnBadRow = "fail"

    @cached_property
    def usable(self) -> ProblemSet:
        """The problems, each looked at."""
        problems = open_problems(self.problems, self.on_bad_row)
        check = ProblemCheck(self.recipe, open_codec(self.policy, self.recipe))
        return check.usable(problems, problems.ids, self.on_bad_row)

    @cached_property
    def declared(self) -> Plan:
        return declare_repair_sheet(with_engine(self.recipe), self.problems, self.policy, self.count)

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        check_reward(self.recipe.reward)
        return replace(self.declared, dropped=self.usable.bad)

    def run(self, step: Step) -> None:
        recipe = self.recipe
        with step.ledger.phase("load"):
            engine = open_engine(self.policy, alone(recipe))
        with open_reward(recipe.reward) as reward:
            self._look_for_errors(Answerer(engine, recipe.prompt, reward, step.ledger), step)
        drafts = read_drafts(step.out, self.usable)
        rows = spread_over_problems(drafts, self.count)
        if not rows:
            raise DataError(
                f"{self.problems}: no error to repair ({counted(step.tally.dropped)}); "
                "raise repair_set.samples_per_problem or rollout.max_new_tokens"
            )
        step.tally.dropped["surplus"] += len(drafts) - len(rows)
        step.tally.rows_out = len(rows)
        step.write_table(ERRORS, rows)
        if processes.is_main():
            if len(rows) < self.count:
                self._tell_of_fewer(len(rows), step)
            with writing(step.out):
                write_sheet(step.out, rows)
        step.finish()

    def _tell_of_fewer(self, found: int, step: Step) -> None:
        logger.warning(
            "%s: only %d of the %d errors that --count asks for (left out: %s); give more problems, or raise "
            "repair_set.samples_per_problem or repair_set.errors_per_problem",
            self.problems,
            found,
            self.count,
            counted(step.tally.dropped),
        )

    def _look_for_errors(self, policy: Answerer, step: Step) -> None:
        """Write errors to `drafts`, part by part in seeded order, until as many problems as errors are wanted have one.

        Counts `problems_with_error`.
        """
        rng = np.random.default_rng(derive_seed(self.recipe.seed, Purpose.SHEET_PROBLEMS))
        order = rng.permutation(self.usable.ids).tolist()
        counts = step.tally.counts
        with track("repair-set: looking for errors", self.count, "problems with an error") as advance:
            advance(min(counts["problems_with_error"], self.count))
            for part, names in enumerate(batched(order, min(self.count, PROBLEMS_AT_ONCE))):
                if counts["problems_with_error"] >= self.count:
                    break
                if not step.has_shard(DRAFTS, part):
                    errors = self._errors(policy, names, part, step.tally)
                    advance(min(len(errors), self.count - counts["problems_with_error"]))
                    counts["problems_with_error"] += len(errors)
                    step.write_shards(part, {DRAFTS: [draft_row(wrong) for found in errors for wrong in found]})

    def _errors(self, policy: Answerer, names: Sequence[str], part: int, tally: Tally) -> list[list[WrongAnswer]]:
        """Those of each problem that has one."""
        section = self.recipe.repair_set
        found = wrong_answers(
            policy,
            self.usable.many(names),
            section.samples_per_problem,
            recipe_sampling(self.recipe, Purpose.SHEET_DRAFTS, part),
            self.recipe,
            tally,
        )
        tally.rows_in += len(names)
        return by_problem(found, section.errors_per_problem, tally)


def by_problem(wrong: Sequence[WrongAnswer], limit: int, tally: Tally) -> list[list[WrongAnswer]]:
    """At most `limit` different errors of each problem that has one; counts what is left out.

    `length`: it was cut off, so nobody knows what it would have said; `empty`; `repeated`: the same text again;
    `surplus`: beyond the limit.
    """
    errors: dict[str, dict[str, WrongAnswer]] = defaultdict(dict)
    for found in wrong:
        text, of_problem = found.answer.text, errors[found.problem.problem_id]
        if found.answer.completion.finish_reason == "length":
            tally.dropped["length"] += 1
        elif not text.strip():
            tally.dropped["empty"] += 1
        elif text in of_problem:
            tally.dropped["repeated"] += 1
        elif len(of_problem) == limit:
            tally.dropped["surplus"] += 1
        else:
            of_problem[text] = found
    return [list(of_problem.values()) for of_problem in errors.values() if of_problem]


def spread_over_problems(drafts: Sequence[Draft], count: int) -> list[AnyRow]:
    """Rows of `errors`: the first error of every problem, then the second of every problem, `count` in all.

    Raises:
        DataError: the id of a second error is another problem's id.
    """
    by_id: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        by_id[draft.problem.problem_id].append(draft)
    rows: dict[str, AnyRow] = {}
    for turn, of_turn in enumerate(zip_longest(*by_id.values()), 1):
        for draft in of_turn:
            if draft is not None and len(rows) < count:
                row = _row(draft, turn)
                if rows.setdefault(row["error_id"], row) is not row:
                    raise DataError(
                        f"problem_id {row['error_id']} is also what an error of {row['problem_id']} would be called; "
                        "rename the problem, or set repair_set.errors_per_problem=1"
                    )
    return list(rows.values())


def _row(draft: Draft, turn: int) -> AnyRow:
    problem = draft.problem
    return {
        "error_id": problem.problem_id if turn == 1 else f"{problem.problem_id}#{turn}",
        "problem_id": problem.problem_id,
        "question": problem.question,
        "images": encoded_images(problem.images),
        "answer": problem.answer,
        "kind": problem.kind,
        "video": None if problem.video is None else encoded_images(problem.video.frames),
        "fps": None if problem.video is None else problem.video.fps,
        "preferred": problem.preferred,
        "choices": problem.choices,
        "error": draft.text,
    }
