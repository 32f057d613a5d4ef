"""What `scores` say of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.core.selection import is_correct
from stages.measures.accuracy import Measure, accuracy_at, mean_over_problems, share

Correct = dict[str, list[bool]]
"""Per problem, whether each draw is correct; unscored draws are left out."""


def correct_by_problem(scores: Iterable[Mapping[str, Any]], mode: str, threshold: float) -> Correct:
    """The draws of one mode, by problem."""
    correct: Correct = defaultdict(list)
    for row in scores:
        if row["mode"] == mode and row["reward"] is not None:
            correct[row["problem_id"]].append(is_correct(row["reward"], threshold))
    return correct


def summarize_scores(section: str, scores: Sequence[Mapping[str, Any]], threshold: float) -> list[Measure]:
    """Greedy, sampled and image-free accuracy over all problems, and Acc@k of the draws."""
    greedy = correct_by_problem(scores, "greedy", threshold)
    sampled = correct_by_problem(scores, "sampled", threshold)
    image_removed = correct_by_problem(scores, "image_removed", threshold)
    measures = [_sampled(section, "sampled accuracy", sampled)]
    measures += [_at_k(section, sampled, k) for k in _powers_of_two(sampled)]
    measures += [_share(section, "greedy accuracy", greedy)]
    if image_removed:
        measures += [_share(section, "greedy accuracy, image removed", image_removed)]
    return measures


def summarize_by_kind(section: str, scores: Sequence[Mapping[str, Any]], threshold: float) -> list[Measure]:
    """Sampled and greedy accuracy of each kind of problem that has a name."""
    kinds = {row["problem_id"]: row["kind"] for row in scores}
    greedy = correct_by_problem(scores, "greedy", threshold)
    sampled = correct_by_problem(scores, "sampled", threshold)
    return [
        measure
        for kind in sorted({kind for kind in kinds.values() if kind is not None})
        for measure in (
            _sampled(section, f"sampled accuracy, {kind}", _of_kind(sampled, kinds, kind)),
            _share(section, f"greedy accuracy, {kind}", _of_kind(greedy, kinds, kind)),
        )
    ]


def _of_kind(correct: Correct, kinds: Mapping[str, str | None], kind: str) -> Correct:
    return {problem: draws for problem, draws in correct.items() if kinds[problem] == kind}


def _share(section: str, measure: str, correct: Correct) -> Measure:
    return share(section, measure, sum(draws[0] for draws in correct.values()), len(correct))


def _sampled(section: str, measure: str, correct: Correct) -> Measure:
    return mean_over_problems(section, measure, [sum(draws) / len(draws) for draws in correct.values()])


def _at_k(section: str, correct: Correct, k: int) -> Measure:
    enough = [draws for draws in correct.values() if len(draws) >= k]
    return mean_over_problems(section, f"Acc@{k}", accuracy_at(enough, k))


def _powers_of_two(correct: Correct) -> list[int]:
    draws = max((len(group) for group in correct.values()), default=1)
    return [2**i for i in range(1, draws.bit_length()) if 2**i <= draws]
