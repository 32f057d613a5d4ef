"""What a page says of runs, several side by side: result, lines, costs, and what was dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from stages.artifacts.overlay import text_html
from stages.chain import MASKS, ROLLOUT, round_folder
from stages.measures.accuracy import Measure
from stages.pages.accuracies import accuracy_table, interval, kinds_table, told_accuracies, told_gains
from stages.pages.chart import Axis, Bar, bars, curves, seconds, table
from stages.pages.lines import PANELS, Line, Panel, lines_of
from stages.pages.state import RunState
from stages.summary import (
    RUN_GAIN,
    Comparison,
    Evaluation,
    Pairs,
    compare_by_kind,
    measure_costs,
    measure_gains,
    measure_repair_training,
    measure_round,
    measure_scores,
    read_evaluation,
)
from stages.untrusted.printable import counted

WHERE = (
    "A round's rollouts, repairs and masks stand at its number; an optimizer step at its share of the round. "
    "Device-seconds leave evaluations out. Bars and bands are 95% intervals."
)


@dataclass(frozen=True)
class RunResult:
    """What is known of a run so far, as `df summarize` measures it."""

    name: str
    state: RunState

    @cached_property
    def evaluations(self) -> dict[int, list[Measure]]:
        """Accuracies by the round that they follow; 0 is the base policy."""
        return {number: measure_scores(self.policy(number), policy) for number, policy in self._evaluated.items()}

    @cached_property
    def comparison(self) -> Comparison:
        """Every evaluated policy, and what the last one gains over the base where both are evaluated."""
        gains = [measure for name, pair in self._pairs.items() for measure in measure_gains(name, *pair)]
        return Comparison([measure for of in self.evaluations.values() for measure in of], gains)

    @cached_property
    def by_kind(self) -> Comparison:
        """The base and the last evaluated policy by kind of problem."""
        ends = {
            self.policy(number): self._evaluated[number] for number in sorted({0, self.last} & self._evaluated.keys())
        }
        return compare_by_kind(ends, self._pairs)

    @property
    def last(self) -> int:
        """The last round that was evaluated after."""
        return max(self._evaluated, default=0)

    @cached_property
    def _evaluated(self) -> dict[int, Evaluation]:
        return {number: read_evaluation(folder) for number, folder in self.state.scored().items()}

    @property
    def _pairs(self) -> Pairs:
        if 0 not in self._evaluated or self.last == 0:
            return {}
        complete = self.policy(self.last) == "final policy"
        name = RUN_GAIN if complete else f"gain, after round {self.last} over base"
        return {name: (self._evaluated[0], self._evaluated[self.last])}

    def policy(self, number: int) -> str:
        """What the summary calls it."""
        if number == 0:
            return "base policy"
        return "final policy" if number == self.last == self.state.rounds else f"policy after round {number}"

    def measures(self) -> list[Measure]:
        """Those of `df summarize`, of the steps that are complete."""
        state = self.state
        folders = [state.folder / place for place in state.steps]
        found = measure_repair_training(folders)
        for n in range(1, state.rounds + 1):
            if state.of_round(n, ROLLOUT) and state.of_round(n, MASKS):
                found += measure_round(n, round_folder(state.folder, n))
        found += [*self.comparison.measures(), *self.by_kind.measures()]
        return found + measure_costs(folders)

    def sentence(self) -> str:
        """The result in one sentence, and what is still missing in another."""
        cost = f"{seconds(self.state.cost)} device-seconds"
        gains = self.comparison.gains
        if gains:
            told = told_gains(gains, self.evaluations[0], self.evaluations[self.last])
            spent = f"{seconds(self.state.cost_after(self.last))} device-seconds"
            words = f"After {_rounds(self.last)} {told}, for {spent}."
        elif 0 in self.evaluations:
            base = told_accuracies(self.evaluations[0])
            words = f"The base policy has {base}; no trained policy is evaluated so far ({cost})."
        else:
            words = f"Nothing is evaluated so far ({_rounds(self.state.rounds)} begun, {cost})."
        missing = ", ".join(self.state.missing)
        return f"{words} Still missing: {missing}." if missing else words


def _rounds(count: int) -> str:
    return f"{count} round{'s' * (count != 1)}"


def runs_part(results: Sequence[RunResult]) -> str:
    """Everything of the runs but their gallery."""
    prefixes = [f"{result.name}: " * (len(results) > 1) for result in results]
    named = list(zip(prefixes, results, strict=True))
    sentences = "".join(f"<p class='result'>{text_html(prefix + r.sentence())}</p>" for prefix, r in named)
    return (
        f"{sentences}{accuracy_table({prefix: r.comparison for prefix, r in named})}"
        f"<details><summary>Every measure of df summarize</summary>{_measures_table(results)}</details>"
        f"{_panels(results)}{kinds_table({prefix: r.by_kind for prefix, r in named})}"
        f"<h2>Device-seconds by stage and phase</h2>{_cost_bars(results)}"
        f"<h2>Steps, and what they dropped</h2>{_steps_table(results)}"
    )


def _measures_table(results: Sequence[RunResult]) -> str:
    """A row a measure, a column a run."""
    cells: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for place, result in enumerate(results):
        for measure in result.measures():
            n = "" if measure.n is None else f" (n = {measure.n:,})"
            value = f"{measure.value:.1f}" if measure.section == "device-seconds" else interval(measure)
            cells[measure.section, measure.measure][place] = value + n
    rows = [[": ".join(key), *(of.get(place, "") for place in range(len(results)))] for key, of in cells.items()]
    return table(("measure", *(result.name for result in results)), rows)


def _panels(results: Sequence[RunResult]) -> str:
    found: dict[str, list[Line]] = defaultdict(list)
    for result in results:
        for title, lines in lines_of(result.state, result.evaluations).items():
            prefix = f"{result.name}: " if len(results) > 1 else ""
            found[title] += [replace(line, label=prefix + line.label) for line in lines]
    panels = [replace(panel, lines=found[panel.title]) for panel in PANELS if panel.title in found]
    return f"<h2>On the way</h2>{curves([*map(over_rounds, panels)], WHERE)}" if panels else ""


def over_rounds(panel: Panel) -> Mapping[Axis, Panel]:
    """The panel over both costs of a run."""
    return {"round": panel, "device_seconds": panel}


def _cost_bars(results: Sequence[RunResult]) -> str:
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for result in results:
        prefix = f"{result.name}: " if len(results) > 1 else ""
        for manifest in result.state.steps.values():
            for phase, spent in manifest["device_seconds"].items():
                found[prefix + manifest["step"]][phase] += spent
    of = [Bar(label, in_order(parts)) for label, parts in found.items()]
    return bars(of, "Rounds added up.") if of else "<p>No step is complete.</p>"


def in_order(parts: Mapping[str, float]) -> dict[str, float]:
    """Device-seconds by phase, in the order in which a step has the phases."""
    order = ("load", "generate", "score", "reward", "train", "evaluate", "save", "other")
    return {phase: parts[phase] for phase in sorted(parts, key=lambda p: order.index(p) if p in order else len(order))}


def told_counts(counts: Mapping[str, int]) -> str:
    """Counts by name in words."""
    return counted({name.replace("_", " "): count for name, count in counts.items()})


def _steps_table(results: Sequence[RunResult]) -> str:
    rows = []
    for result in results:
        prefix = f"{result.name}: " if len(results) > 1 else ""
        for place, manifest in result.state.steps.items():
            ins, outs = (f"{manifest[name]:,}" for name in ("rows_in", "rows_out"))
            rows.append(
                [prefix + place, "complete", ins, outs, *map(told_counts, (manifest["dropped"], manifest["counts"]))]
            )
        rows += [[prefix + place, f"missing: {why}", "", "", "", ""] for place, why in result.state.missing.items()]
    heads = ("step", "state", "rows in", "rows out", "dropped, by reason", "counted")
    return f"<div class='wide'>{table(heads, rows)}</div>"
