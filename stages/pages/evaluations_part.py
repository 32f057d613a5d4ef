"""What a page says of evaluations: the accuracy of each policy, and what the others gain over the first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from stages.artifacts.overlay import text_html
from stages.measures.accuracy import Measure
from stages.pages.accuracies import accuracy_table, kinds_table, told_accuracies, told_gains
from stages.summary import Comparison, compare, compare_by_kind, over_first, read_evaluation


def evaluations_part(folders: Mapping[str, Path]) -> str:
    """Evaluations by their names, the first being what the others are compared with."""
    policies = {name: read_evaluation(folder) for name, folder in folders.items()}
    pairs = over_first(policies)
    overall, by_kind = compare(policies, pairs), compare_by_kind(policies, pairs)
    sentences = "".join(f"<p class='result'>{text_html(sentence)}</p>" for sentence in _sentences(overall))
    return f"<h2>Evaluations</h2>{sentences}{accuracy_table({'': overall})}{kinds_table({'': by_kind})}"


def _sentences(overall: Comparison) -> Iterator[str]:
    """What each of the others gains over the first, or what this one comes to where it is alone."""
    accuracies, gains = _by_section(overall.policies), _by_section(overall.gains)
    first, *others = accuracies
    if not others:
        yield f"{first}: {told_accuracies(accuracies[first])}."
    for name, gained in zip(others, gains.values(), strict=True):
        yield f"{name} over {first}: {told_gains(gained, accuracies[first], accuracies[name])}."


def _by_section(measures: Iterable[Measure]) -> dict[str, list[Measure]]:
    found = defaultdict(list)
    for measure in measures:
        found[measure.section].append(measure)
    return found
