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


def summarize_gains(
    section: str, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], threshold: float
) -> list[Measure]:
    """Sampled and greedy accuracy of one model over another's, paired by problem; those that both answered count."""
    measures = []
    for mode in ("sampled", "greedy"):
        first, second = (correct_by_problem(rows, mode, threshold) for rows in (before, after))
        gains = [_mean(second[problem]) - _mean(first[problem]) for problem in first if problem in second]
        measures.append(mean_over_problems(section, f"{mode} accuracy", gains))
    return measures


def summarize_by_kind(section: str, scores: Iterable[Mapping[str, Any]], threshold: float) -> list[Measure]:
    """Sampled and greedy accuracy of each kind of problem that has a name."""
    return [
        measure._replace(measure=f"{measure.measure}, {kind}")
        for kind, rows in by_kind(scores).items()
        for measure in (
            _sampled(section, "sampled accuracy", correct_by_problem(rows, "sampled", threshold)),
            _share(section, "greedy accuracy", correct_by_problem(rows, "greedy", threshold)),
        )
    ]


def summarize_gains_by_kind(
    section: str, before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]], threshold: float
) -> list[Measure]:
    """The gains of each kind that both have."""
    first, second = by_kind(before), by_kind(after)
    return [
        measure._replace(measure=f"{measure.measure}, {kind}")
        for kind in first
        if kind in second
        for measure in summarize_gains(section, first[kind], second[kind], threshold)
    ]


def by_kind(scores: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of each kind of problem that has a name, in the order of these."""
    found = defaultdict(list)
    for row in scores:
        if row["kind"] is not None:
            found[row["kind"]].append(row)
    return {kind: found[kind] for kind in sorted(found)}


def _share(section: str, measure: str, correct: Correct) -> Measure:
    return share(section, measure, sum(draws[0] for draws in correct.values()), len(correct))


def _sampled(section: str, measure: str, correct: Correct) -> Measure:
    return mean_over_problems(section, measure, [_mean(draws) for draws in correct.values()])


def _at_k(section: str, correct: Correct, k: int) -> Measure:
    enough = [draws for draws in correct.values() if len(draws) >= k]
    return mean_over_problems(section, f"Acc@{k}", accuracy_at(enough, k))


def _powers_of_two(correct: Correct) -> list[int]:
    draws = max((len(group) for group in correct.values()), default=1)
    return [2**i for i in range(1, draws.bit_length()) if 2**i <= draws]


def _mean(draws: Sequence[bool]) -> float:
    return sum(draws) / len(draws)
