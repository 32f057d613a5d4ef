"""The policy's wrong answers: what there is to repair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stages.artifacts.columns import DRAFTS
from stages.artifacts.problems import Problem, ProblemSet
from stages.artifacts.rows import DraftRow
from stages.artifacts.step import Tally
from stages.artifacts.store import iterate_rows
from stages.core.selection import is_correct
from stages.engines.protocol import Sampling
from stages.model.prompts import can_be_reference
from stages.recipe import Recipe
from stages.repair.answering import Answer, Answerer
from stages.repair.repairs import Draft, right_responses
from stages.reward.lost_answers import Response, count_lost


class WrongAnswer(NamedTuple):
    """An answer of reward below τ."""

    problem: Problem
    sample: int
    """Which of the problem's answers it is."""
    answer: Answer
    siblings: Sequence[str]
    """Texts of the problem's correct answers that can be references: none that was cut at the length limit."""

    @property
    def right_texts(self) -> list[str]:
        return right_responses(self.problem, self.siblings)


def wrong_answers(
    policy: Answerer, problems: Sequence[Problem], n: int, sampling: Sampling, recipe: Recipe, tally: Tally
) -> list[WrongAnswer]:
    """The wrong ones of `n` answers to each problem, problem by problem.

    Counts `drafts`, the `correct` ones, lost answers, and as dropped `unscored` answers and problems of which the
    `prompt_too_long`.
    """
    threshold = recipe.reward.threshold
    wrong: list[WrongAnswer] = []
    for problem, group in zip(problems, policy.answer(problems, n, sampling), strict=True):
        tally.counts["drafts"] += len(group)
        count_lost(tally.counts, recipe, (Response(a.text, a.completion.finish_reason) for a in group))
        tally.dropped["prompt_too_long"] += not group
        tally.dropped["unscored"] += sum(answer.reward is None for answer in group)
        tally.counts["correct"] += sum(is_correct(answer.reward, threshold) for answer in group)
        correct = [
            answer.text
            for answer in group
            if is_correct(answer.reward, threshold) and answer.completion.finish_reason == "stop"
        ]
        siblings = [text for text in correct if can_be_reference(policy.engine.codec.processor, text)]
        wrong += [
            WrongAnswer(problem, sample, answer, siblings)
            for sample, answer in enumerate(group)
            if answer.reward is not None and not is_correct(answer.reward, threshold)
        ]
    return wrong


def draft_row(wrong: WrongAnswer, right_response: str | None = None) -> DraftRow:
    return {
        "problem_id": wrong.problem.problem_id,
        "sample": wrong.sample,
        "ids": wrong.answer.completion.ids,
        "text": wrong.answer.text,
        "right_response": right_response,
        "right_texts": wrong.right_texts,
    }


def read_drafts(folder: Path, problems: ProblemSet) -> list[Draft]:
    """The `drafts` of a folder, in order."""
    rows = list(iterate_rows(folder, DRAFTS))
    by_id = {p.problem_id: p for p in problems.many(list(dict.fromkeys(row["problem_id"] for row in rows)))}
    return [
        Draft(
            by_id[row["problem_id"]],
            row["sample"],
            row["ids"],
            row["text"],
            row["right_response"],
            right_texts=row["right_texts"] or (),
        )
        for row in rows
    ]
