"""The repair set, first half: problems, policy -> its errors as a sheet to annotate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from stages import processes
from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import ERRORS
from stages.artifacts.label_studio import write_sheet
from stages.artifacts.problems import PROBLEMS_AT_ONCE, ProblemSet, encoded_images
from stages.artifacts.step import Plan, Step, Tally
from stages.artifacts.writing import writing
from stages.batching import batched
from stages.engines.loading import open_codec, open_engine, recipe_sampling, with_engine
from stages.errors import DataError
from stages.progress import track
from stages.recipe import Recipe
from stages.scoring.answering import Answerer
from stages.scoring.rewards import check_reward, open_reward
from stages.scoring.usable import ProblemCheck
from stages.scoring.wrong_answers import WrongAnswer, wrong_answers
from stages.sections import SAMPLING_FIELDS
from stages.seeds import Purpose, derive_seed

Errors = list[WrongAnswer]
"""Different wrong answers to one problem."""


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
        problems = ProblemSet(self.problems, on_bad_row=self.on_bad_row)
        check = ProblemCheck(self.recipe, open_codec(self.policy, self.recipe))
        return check.usable(problems, problems.ids, self.on_bad_row)

    @property
    def inputs(self) -> dict[str, Path]:
        return {"problems": self.problems, "policy": self.policy}

    def plan(self) -> Plan:
        check_reward(self.recipe.reward)
        recipe = with_engine(self.recipe).subset(
            "model",
            "engine",
            "prompt",
            "reward",
            rollout=SAMPLING_FIELDS,
            repair_set={"samples_per_problem", "errors_per_problem"},
        )
        return Plan("repair-set sheet", recipe | {"count": self.count}, self.recipe.seed, self.inputs, self.usable.bad)

    def run(self, step: Step) -> None:
        recipe = self.recipe
        with step.ledger.phase("load"):
            engine = open_engine(self.policy, recipe)
        with open_reward(recipe.reward) as reward:
            policy = Answerer(engine, recipe.prompt, reward, step.ledger)
            found = self._look_for_errors(policy, self.usable, step.tally)
        rows = spread_over_problems(found, self.count)
        if not rows:
            raise DataError(
                f"{self.problems}: no error to repair ({dict(step.tally.dropped)}); "
                "raise repair_set.samples_per_problem or rollout.max_new_tokens"
            )
        step.tally.dropped["surplus"] += sum(len(errors) for errors in found) - len(rows)
        step.tally.rows_out = len(rows)
        step.write_table(ERRORS, rows)
        if processes.is_main():
            with writing(step.out):
                write_sheet(step.out, rows)
        step.finish()

    def _look_for_errors(self, policy: Answerer, problems: ProblemSet, tally: Tally) -> list[Errors]:
        """Errors problem by problem in seeded order, until as many problems as errors are wanted have one."""
        recipe, section = self.recipe, self.recipe.repair_set
        rng = np.random.default_rng(derive_seed(recipe.seed, Purpose.SHEET_PROBLEMS))
        order = rng.permutation(problems.ids).tolist()
        found: list[Errors] = []
        with track("repair-set: looking for errors", self.count, "problems with an error") as advance:
            for part, names in enumerate(batched(order, min(self.count, PROBLEMS_AT_ONCE))):
                sampling = recipe_sampling(recipe, Purpose.SHEET_DRAFTS, part)
                wrong = wrong_answers(
                    policy,
                    problems.many(names),
                    section.samples_per_problem,
                    sampling,
                    recipe.reward.threshold,
                    tally,
                )
                tally.rows_in += len(names)
                new = by_problem(wrong, section.errors_per_problem, tally)
                advance(min(len(new), self.count - len(found)))
                found += new
                if len(found) >= self.count:
                    break
        return found


def by_problem(wrong: Sequence[WrongAnswer], limit: int, tally: Tally) -> list[Errors]:
    """At most `limit` errors of each problem that has one; counts what is left out.

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


def spread_over_problems(found: Sequence[Errors], count: int) -> list[dict[str, Any]]:
    """Rows of `errors`: the first error of every problem, then the second of every problem, `count` in all.

    Raises:
        DataError: the id of a second error is another problem's id.
    """
    rows: dict[str, dict[str, Any]] = {}
    for turn, errors in enumerate(zip_longest(*found), 1):
        for error in errors:
            if error is not None and len(rows) < count:
                row = _row(error, turn)
                if rows.setdefault(row["error_id"], row) is not row:
                    raise DataError(
                        f"problem_id {row['error_id']} is also what an error of {row['problem_id']} would be called; "
                        "rename the problem, or set repair_set.errors_per_problem=1"
                    )
    return list(rows.values())


def _row(error: WrongAnswer, turn: int) -> dict[str, Any]:
    problem = error.problem
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
        "error": error.answer.text,
    }
