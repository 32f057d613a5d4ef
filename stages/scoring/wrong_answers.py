"""The policy's wrong answers: what there is to repair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stages.artifacts.problems import Problem
from stages.artifacts.step import Tally
from stages.core.selection import is_correct
from stages.engines.protocol import Sampling
from stages.scoring.answering import Answer, Answerer


class WrongAnswer(NamedTuple):
    """An answer of reward below τ: which of the problem's samples it is."""

    problem: Problem
    sample: int
    answer: Answer


def wrong_answers(
    policy: Answerer, problems: Sequence[Problem], n: int, sampling: Sampling, threshold: float, tally: Tally
) -> list[WrongAnswer]:
    """The wrong ones of `n` answers to each problem, problem by problem; counts `drafts`, and `unscored` as dropped."""
    groups = policy.answer(problems, n, sampling)
    answers = [
        WrongAnswer(problem, sample, answer)
        for problem, group in zip(problems, groups, strict=True)
        for sample, answer in enumerate(group)
    ]
    tally.counts["drafts"] += len(answers)
    tally.dropped["unscored"] += sum(found.answer.reward is None for found in answers)
    return [
        found for found in answers if found.answer.reward is not None and not is_correct(found.answer.reward, threshold)
    ]
