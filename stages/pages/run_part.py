"""What a page says of runs, several side by side: result, lines, costs, and what was dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from stages.artifacts.columns import SAMPLES
from stages.artifacts.overlay import text_html
from stages.chain import MASKS, RL, ROLLOUT, SFT, round_folder
from stages.measures.accuracy import Measure
from stages.measures.scores import summarize_scores
from stages.pages.chart import AXES, Bar, bars, figure, number, seconds, table
from stages.pages.lines import PANELS, Line, lines_of
from stages.pages.state import RunState
from stages.summary import (
    Scores,
    check_alike,
    measure_costs,
    measure_gains,
    measure_gates,
    measure_repair_model,
    measure_round,
    read_scores,
)
from stages.untrusted.printable import counted


@dataclass(frozen=True)
class RunResult:
    """What is known of a run so far, as `df summarize` measures it."""

    name: str
    state: RunState

    @cached_property
    def evaluations(self) -> dict[int, list[Measure]]:
        """Accuracies by the round that they follow; 0 is the base policy."""
        return {
            number: summarize_scores(self.policy(number), rows, self._threshold(folder.name))
            for number, (folder, rows) in self._scores.items()
        }

    @cached_property
    def gains(self) -> list[Measure]:
        """Of the last evaluated policy over the base; none where one of them is not evaluated."""
        if 0 not in self._scores or self.last == 0:
            return []
        before, after = (self._scores[number] for number in (0, self.last))
        check_alike(before[0], after[0])
        return measure_gains(before[1], after[1], self._threshold(after[0].name))

    @property
    def last(self) -> int:
        """The last round that was evaluated after."""
        return max(self._scores, default=0)

    @cached_property
    def _scores(self) -> dict[int, tuple[Path, Scores]]:
        return {number: (folder, read_scores(folder)) for number, folder in self.state.scored().items()}

    def policy(self, number: int) -> str:
        """What the summary calls it."""
        if number == 0:
            return "base policy"
        return "final policy" if number == self.last == self.state.rounds else f"policy after round {number}"

    def _threshold(self, place: str) -> float:
        return float(self.state.steps[place]["recipe"]["reward"]["threshold"])

    def measures(self) -> list[Measure]:
        """Those of `df summarize`, of the steps that are complete."""
        state, found = self.state, list[Measure]()
        for place, section in ((SFT, "repair model after SFT"), (RL, "repair model after RL")):
            if place in state.steps and (state.folder / place / f"{SAMPLES.name}.parquet").is_file():
                found += measure_repair_model(section, state.folder / place, self._threshold(place))
        if RL in state.steps:
            found += measure_gates(state.folder / RL)
        for n in range(1, state.rounds + 1):
            if state.of_round(n, ROLLOUT) and state.of_round(n, MASKS):
                found += measure_round(n, round_folder(state.folder, n))
        found += [measure for measures in self.evaluations.values() for measure in measures]
        return found + self.gains + measure_costs([state.folder / place for place in state.steps])

    def sentence(self) -> str:
        """The result in one sentence, and what is still missing in another."""
        cost = f"{seconds(self.state.cost)} device-seconds"
        gains = [self._gain(measure) for measure in self.gains]
        if gains:
            spent = f"{seconds(self.state.cost_after(self.last))} device-seconds"
            words = f"After {_rounds(self.last)} {', and '.join(gains)}, on {self.gains[0].n} problems, for {spent}."
        elif 0 in self.evaluations:
            base = ", ".join(f"{m.measure} {_interval(m)}" for m in _accuracies(self.evaluations[0]))
            words = f"The base policy has {base}; no trained policy is evaluated so far ({cost})."
        else:
            words = f"Nothing is evaluated so far ({_rounds(self.state.rounds)} begun, {cost})."
        missing = ", ".join(self.state.missing)
        return f"{words} Still missing: {missing}." if missing else words

    def _gain(self, gain: Measure) -> str:
        before, after = (
            next(m.value for m in self.evaluations[n] if m.measure == gain.measure) for n in (0, self.last)
        )
        certain = gain.low is not None and gain.high is not None and gain.low * gain.high > 0
        way = ("rose" if gain.value > 0 else "fell") if certain else "moved within its uncertainty"
        return f"{gain.measure} {way} from {number(before)} to {number(after)} ({_interval(gain, '+')})"


def _rounds(count: int) -> str:
    return f"{count} round{'s' * (count != 1)}"


def _interval(measure: Measure, sign: str = "") -> str:
    """A number with its 95% interval."""
    value, low, high = (f"{x:{sign}.3f}" if x is not None else "" for x in (measure.value, measure.low, measure.high))
    return f"{value} [{low}, {high}]" if low else value


def _accuracies(measures: Sequence[Measure]) -> list[Measure]:
    return [measure for measure in measures if measure.measure in ("sampled accuracy", "greedy accuracy")]


def runs_part(results: Sequence[RunResult]) -> str:
    """Everything of the runs but their gallery."""
    several = len(results) > 1
    sentences = "".join(f"<p class='result'>{text_html(f'{r.name}: ' * several + r.sentence())}</p>" for r in results)
    return (
        f"{sentences}{_result_table(results)}"
        f"<details><summary>Every measure of df summarize</summary>{_measures_table(results)}</details>"
        f"{_panels(results)}<h2>Device-seconds by stage and phase</h2>{_cost_bars(results)}"
        f"<h2>Steps, and what they dropped</h2>{_steps_table(results)}"
    )


def _result_table(results: Sequence[RunResult]) -> str:
    """Policies and gains below each other."""
    rows = []
    for result in results:
        prefix = f"{result.name}: " if len(results) > 1 else ""
        of = [*((result.policy(n), measures) for n, measures in result.evaluations.items())]
        if result.gains:
            of.append(("gain, paired by problem", result.gains))
        for name, measures in of:
            sign = "+" if measures is result.gains else ""
            shown = [_interval(measure, sign) for measure in _accuracies(measures)]
            rows.append([prefix + name, *shown, str(measures[0].n)])
    heads = ("policy", "sampled accuracy", "greedy accuracy", "problems")
    return table(heads, rows, "Brackets are 95% intervals.") if rows else ""


def _measures_table(results: Sequence[RunResult]) -> str:
    """A row a measure, a column a run."""
    cells: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for place, result in enumerate(results):
        for measure in result.measures():
            n = "" if measure.n is None else f" (n = {measure.n:,})"
            value = f"{measure.value:.1f}" if measure.section == "device-seconds" else _interval(measure)
            cells[measure.section, measure.measure][place] = value + n
    rows = [[": ".join(key), *(of.get(place, "") for place in range(len(results)))] for key, of in cells.items()]
    return table(("measure", *(result.name for result in results)), rows)


def _panels(results: Sequence[RunResult]) -> str:
    found: dict[str, list[Line]] = defaultdict(list)
    for result in results:
        for title, lines in lines_of(result.state, result.evaluations).items():
            prefix = f"{result.name}: " if len(results) > 1 else ""
            found[title] += [replace(line, label=prefix + line.label) for line in lines]
    drawn = [figure(replace(panel, lines=found[panel.title])) for panel in PANELS if panel.title in found]
    if not drawn:
        return ""
    options = "".join(f"<option value='{value}'>{name}</option>" for value, name in AXES.items())
    return (
        "<h2>On the way</h2>"
        f"<form hidden><label>Horizontal axis <select id='axis'>{options}</select></label></form>"
        "<p>A round's rollouts, repairs and masks stand at its number; an optimizer step at its share of the round. "
        f"Device-seconds leave evaluations out.</p><div class='panels'>{''.join(drawn)}</div>"
    )


def _cost_bars(results: Sequence[RunResult]) -> str:
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for result in results:
        prefix = f"{result.name}: " if len(results) > 1 else ""
        for manifest in result.state.steps.values():
            for phase, spent in manifest["device_seconds"].items():
                found[prefix + manifest["step"]][phase] += spent
    of = [Bar(label, _in_order(parts)) for label, parts in found.items()]
    return bars(of, "Rounds added up.") if of else "<p>No step is complete.</p>"


def _in_order(parts: Mapping[str, float]) -> dict[str, float]:
    order = ("load", "generate", "score", "reward", "train", "evaluate", "save", "other")
    return {phase: parts[phase] for phase in sorted(parts, key=lambda p: order.index(p) if p in order else len(order))}


def _counted(counts: Mapping[str, int]) -> str:
    return counted({name.replace("_", " "): count for name, count in counts.items()})


def _steps_table(results: Sequence[RunResult]) -> str:
    rows = []
    for result in results:
        prefix = f"{result.name}: " if len(results) > 1 else ""
        for place, manifest in result.state.steps.items():
            ins, outs = (f"{manifest[name]:,}" for name in ("rows_in", "rows_out"))
            rows.append(
                [prefix + place, "complete", ins, outs, *map(_counted, (manifest["dropped"], manifest["counts"]))]
            )
        rows += [[prefix + place, f"missing: {why}", "", "", "", ""] for place, why in result.state.missing.items()]
    heads = ("step", "state", "rows in", "rows out", "dropped, by reason", "counted")
    return f"<div class='wide'>{table(heads, rows)}</div>"
