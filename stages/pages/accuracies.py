"""Accuracies and gains as a page tells them: in a sentence, in a table, in a table by kind of problem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from stages.measures.accuracy import Measure
from stages.pages.chart import number, table
from stages.summary import BY_KIND, Comparison

_SHOWN = ("sampled accuracy", "greedy accuracy")
_HEADS = ("policy", *_SHOWN, "problems")
_CAPTION = "Brackets are 95% intervals; gains are paired by problem."


def interval(measure: Measure, sign: str = "") -> str:
    """A number with its 95% interval."""
    value, low, high = (f"{x:{sign}.3f}" if x is not None else "" for x in (measure.value, measure.low, measure.high))
    return f"{value} [{low}, {high}]" if low else value


def told_accuracies(measures: Sequence[Measure]) -> str:
    """Sampled and greedy accuracy in words."""
    return ", ".join(f"{m.measure} {interval(m)}" for m in _shown(measures))


def told_gains(gains: Sequence[Measure], before: Sequence[Measure], after: Sequence[Measure]) -> str:
    """What was gained in words, from the accuracies before and after."""
    return f"{', and '.join(_told_gain(gain, before, after) for gain in gains)}, on {gains[0].n} problems"


def _told_gain(gain: Measure, before: Sequence[Measure], after: Sequence[Measure]) -> str:
    old, new = (next(m.value for m in of if m.measure == gain.measure) for of in (before, after))
    certain = gain.low is not None and gain.high is not None and gain.low * gain.high > 0
    way = ("rose" if gain.value > 0 else "fell") if certain else "moved within its uncertainty"
    return f"{gain.measure} {way} from {number(old)} to {number(new)} ({interval(gain, '+')})"


def accuracy_table(compared: Mapping[str, Comparison]) -> str:
    """Policies and gains below each other; the keys stand before their names."""
    rows = [
        [prefix + name, *cells]
        for prefix, comparison in compared.items()
        for (_, name), cells in _cells(_shown(comparison.policies), _shown(comparison.gains)).items()
    ]
    return table(_HEADS, rows, _CAPTION) if rows else ""


def kinds_table(compared: Mapping[str, Comparison]) -> str:
    """The same of comparisons by kind of problem; nothing where none is compared."""
    rows = [
        [kind, prefix + name.removesuffix(BY_KIND), *cells]
        for prefix, comparison in compared.items()
        for (kind, name), cells in _cells(*comparison).items()
    ]
    rows.sort(key=lambda row: row[0])
    if not rows:
        return ""
    return f"<h2>By kind of problem</h2><div class='kinds'>{table(('kind', *_HEADS), rows, _CAPTION)}</div>"


def _shown(measures: Sequence[Measure]) -> list[Measure]:
    return [measure for measure in measures if measure.measure in _SHOWN]


def _cells(policies: Sequence[Measure], gains: Sequence[Measure]) -> dict[tuple[str, str], list[str]]:
    """By kind and section: accuracies, and how many problems."""
    found: dict[tuple[str, str], list[Measure]] = defaultdict(list)
    for measure in (*policies, *gains):
        found[measure.measure.partition(", ")[2], measure.section].append(measure)
    signs = {measure.section: "+" for measure in gains}
    return {
        key: [*(interval(measure, signs.get(key[1], "")) for measure in of), str(of[0].n)] for key, of in found.items()
    }
