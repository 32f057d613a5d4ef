"""What a page says of a study: each variant's result, its accuracy over what it cost, its rounds, its costs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts.columns import ABLATION, CURVES, ROLLOUTS
from stages.artifacts.overlay import text_html
from stages.artifacts.store import iterate_rows
from stages.chain import ROLLOUT
from stages.pages.chart import Axis, Bar, bars, curves, number, seconds, table
from stages.pages.lines import PANELS, Line, Panel, Point, lines_of
from stages.pages.run_part import in_order, over_rounds, told_counts
from stages.pages.state import RunState, Source, read_state
from stages.study.curves import MODES, Run, line, read_runs
from stages.study.results import BASE
from stages.study.run_folders import runs_on_test

_FILES = (f"{CURVES.name}.parquet", f"{ABLATION.name}.parquet")
_AXES: Sequence[Axis] = ("device_seconds", "rollouts", "round")


@dataclass(frozen=True)
class Arm:
    """One variant with one seed, as far as its steps are on disk."""

    source: Source
    is_recorded: bool
    """Whether its result is: else it is under way, or failed."""

    @property
    def state(self) -> RunState:
        """Its steps."""
        return self.source.state

    @property
    def key(self) -> tuple[str, str]:
        """Variant and seed."""
        return self.source.variant, self.source.seed

    @property
    def label(self) -> str:
        """What it is counted under."""
        return self.source.variant if self.is_recorded else f"{self.source.variant}, not complete"


@dataclass(frozen=True)
class Study:
    """A study, complete or under way."""

    name: str
    runs: Sequence[Run]
    """The recorded ones that trained something."""
    arms: Sequence[Arm]
    """The runs on test problems that have begun, the base's left out: the recorded ones first, variants in
    the order of `runs`, so that they have the same colours in every panel."""
    rows: Sequence[Mapping[str, Any]] | None
    """Of `ablation`; None where it was never complete."""

    @property
    def tested(self) -> list[Run]:
        """The recorded runs on test problems."""
        return [run for run in self.runs if run.problems == "test"]

    @property
    def under_way(self) -> list[Arm]:
        """Those that are neither recorded nor known to have failed."""
        failed = {(row["variant"], str(row["seed"])) for row in self.rows or () if row["measure"] == "failed"}
        return [arm for arm in self.arms if not arm.is_recorded and arm.key not in failed]


def is_study(folder: Path) -> bool:
    """Whether `df ablate` has begun a run on test problems there, or recorded one or its result."""
    return any(runs_on_test(folder)) or any((folder / name).is_file() for name in _FILES)


def read_study(name: str, folder: Path) -> Study:
    """What there is of a study."""
    runs = [run for run in read_runs(folder / _FILES[0]) if run.variant != BASE and len(run.points) > 1]
    recorded = dict.fromkeys((run.variant, str(run.seed)) for run in runs if run.problems == "test")
    order = [*dict.fromkeys(variant for variant, _ in recorded)]
    arms = [
        Arm(Source(state, name, variant, str(seed)), (variant, str(seed)) in recorded)
        for variant, seed, run in runs_on_test(folder)
        if variant != BASE and (state := read_state(run)) is not None
    ]
    result = folder / _FILES[1]
    rows = list(iterate_rows(result, ABLATION)) if result.is_file() else None
    return Study(
        name, runs, sorted(arms, key=lambda arm: order.index(arm.key[0]) if arm.is_recorded else len(order)), rows
    )


def study_part(study: Study) -> str:
    """Everything of a study but its rollouts and its gallery."""
    notes = "".join(f"<p>{text_html(note)}</p>" for note in _notes(study))
    return (
        f"<h2>Study {text_html(study.name)}</h2><p class='result'>{text_html(_sentence(study))}</p>"
        f"{'' if study.rows is None else _result(study.rows)}{notes}"
        f"{_accuracies(study.runs)}{_rounds(study)}{_costs(study)}{_steps(study)}"
    )


def _sentence(study: Study) -> str:
    words = "" if study.rows is None else _best(study.rows)
    if study.rows is None:
        tuning = len(study.runs) - len(study.tested)
        words = (
            f"Under way; done: runs on test problems: {len(study.tested)}, runs that tune a learning rate: {tuning}."
        )
    begun = "; ".join(
        f"{arm.source.variant} with seed {arm.source.seed}, round {arm.state.rounds}, "
        f"{seconds(arm.state.cost)} device-seconds so far"
        for arm in study.under_way
    )
    return f"{words} Not complete: {begun}." if begun else words


def _best(rows: Sequence[Mapping[str, Any]]) -> str:
    values = {
        row["variant"]: row["value"] for row in rows if row["seed"] is None and row["measure"] == "sampled accuracy"
    }
    order = sorted(values, key=lambda variant: -values[variant])
    failed = sum(row["measure"] == "failed" for row in rows)
    best = ", ".join(f"{variant} {number(values[variant])}" for variant in order)
    return f"Sampled accuracy on test problems, best first: {best or 'none'}." + f" Failed: {failed}." * bool(failed)


def _notes(study: Study) -> Iterable[str]:
    """What is not on disk."""
    arms = {arm.key: arm.state for arm in study.arms}
    states = [arms.get((run.variant, str(run.seed))) for run in study.tested]
    if gone := states.count(None):
        yield f"No step of {gone} of {len(states)} runs is on disk, so that only their accuracies are shown."
    without = sum(
        state is not None and not any(state.with_rows(n, ROLLOUT, ROLLOUTS) for n in range(1, state.rounds + 1))
        for state in states
    )
    if without:
        yield (
            f"The rollouts and repairs of {without} of {len(states)} runs are not on disk (ablate.keep_rounds: false "
            "removes them once a run is recorded), so none is shown."
        )


def _result(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a variant: what it came to; with every measure behind it; then why runs failed."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row["seed"] is None:
            sign = "+" if any(word in row["measure"] for word in (" gain over ", " difference to ")) else ""
            ends = [f"{row[name]:{sign}.3f}" for name in ("low", "high") if row[name] is not None]
            interval = f" [{', '.join(ends)}]" if ends else ""
            cells[row["variant"]][row["measure"]] = f"{row['value']:{sign}.3f}{interval}"
    every = list(dict.fromkeys(measure for of in cells.values() for measure in of))
    first = [
        name for name in every if " at " not in name and name.partition(" ")[0] in MODES and " gain over " not in name
    ]
    tables = [
        table(
            ("variant", *measures),
            [[variant, *(of.get(measure, "") for measure in measures)] for variant, of in cells.items()],
            "Over all seeds; brackets are 95% intervals.",
        )
        for measures in (first, every)
    ]
    failed = [[row["variant"], str(row["seed"]), row["note"]] for row in rows if row["measure"] == "failed"]
    why = f"<div class='wide'>{table(('failed variant', 'seed', 'why'), failed)}</div>" if failed else ""
    return f"{tables[0]}<details><summary>Every measure of the variants</summary>{tables[1]}</details>{why}"


def _accuracies(runs: Sequence[Run]) -> str:
    """A line a variant, or a variant's learning rate: the mean over its seeds, with a band of one standard error."""
    panels = []
    for problems in ("test", "validation"):
        by_label: dict[str, dict[int, Run]] = defaultdict(dict)
        for run in runs:
            if run.problems == problems:
                rate = "" if problems == "test" else f", learning rate {run.learning_rate or 0:g}"
                by_label[run.variant + rate][run.seed] = run
        panels += [_accuracy(by_label, mode, problems) for mode in MODES if by_label]
    if not panels:
        return ""
    told = (
        "Each line is a mean over n seeds, from where all have begun to where the first ends; bands: one standard error"
    )
    return curves(panels, f"{told}. Device-seconds leave evaluations out.", large=True)


def _accuracy(by_label: Mapping[str, Mapping[int, Run]], mode: str, problems: str) -> Mapping[Axis, Panel]:
    panel = Panel(f"{mode.capitalize()} accuracy, {problems}", f"share of the {problems} problems")
    return {
        axis: replace(
            panel,
            lines=[_line(f"{label} (n = {len(of)})", [*of.values()], mode, axis) for label, of in by_label.items()],
        )
        for axis in _AXES
    }


def _line(label: str, runs: Sequence[Run], mode: str, axis: Axis) -> Line:
    grid_X, values_SX = line(runs, mode, axis)
    costs = {name: _mean_costs(runs, grid_X, axis, name) for name in _AXES}
    drawn = (costs["round"], costs["device_seconds"], *_means(values_SX))
    points = [Point(*map(float, of)) for of in zip(*drawn, strict=True)]
    rollouts = map(float, costs["rollouts"])
    return Line(label, [point._replace(rollouts=n) for point, n in zip(points, rollouts, strict=True)])


def _mean_costs(runs: Sequence[Run], grid_X: Any, axis: Axis, cost: Axis) -> Any:
    """Where the runs are on one axis on average when they are there on another."""
    places = [[[getattr(point, name) for point in run.points] for name in (axis, cost)] for run in runs]
    return np.mean([np.interp(grid_X, there, here) for there, here in places], axis=0)


def _means(values_SX: Any) -> list[Any]:
    """The mean over runs, and, of several, that less and more one standard error."""
    mean_X = values_SX.mean(axis=0)
    if len(values_SX) == 1:
        return [mean_X]
    error_X = values_SX.std(axis=0, ddof=1) / len(values_SX) ** 0.5
    return [mean_X, mean_X - error_X, mean_X + error_X]


def _by_label(study: Study) -> Mapping[str, list[Arm]]:
    found: dict[str, list[Arm]] = defaultdict(list)
    for arm in study.arms:
        found[arm.label].append(arm)
    return {f"{label} (n = {len(arms)})": arms for label, arms in found.items()}


def _rounds(study: Study) -> str:
    """Panels of what changes over the rounds, as a run has them."""
    found: dict[str, dict[str, dict[str, list[Line]]]] = defaultdict(lambda: defaultdict(dict))
    for label, arms in _by_label(study).items():
        for arm in arms:
            for title, lines in lines_of(arm.state, {}).items():
                for one in lines:
                    found[title][one.label].setdefault(label, []).append(one)
    panels = [replace(panel, lines=_labelled(found[panel.title])) for panel in PANELS if found.get(panel.title)]
    if not panels:
        return ""
    told = (
        "Each point is a round's mean, over its optimizer steps and over n runs, up to the last round that all of "
        "these have; bars: one standard error over runs."
    )
    return f"<h2>Study {text_html(study.name)}: on the way</h2>{curves([*map(over_rounds, panels)], told)}"


def _labelled(by_role: Mapping[str, Mapping[str, Sequence[Line]]]) -> list[Line]:
    """Variants in the same order in each panel, so that they have the same colours."""
    return [
        _mean_line(label if len(by_role) == 1 else f"{label}: {role}", lines)
        for role, by_label in by_role.items()
        for label, lines in by_label.items()
    ]


def _mean_line(label: str, lines: Sequence[Line]) -> Line:
    runs = [_by_round(one) for one in lines]
    points = []
    for n in sorted(set.intersection(*(set(of) for of in runs))):
        spent = float(np.mean([of[n][0] for of in runs]))
        points.append(Point(n, spent, *map(float, _means(np.array([of[n][1] for of in runs])))))
    return Line(label, points)


def _by_round(one: Line) -> dict[int, tuple[float, float]]:
    """Device-seconds by the end of each round, and the mean value."""
    found: dict[int, list[Point]] = defaultdict(list)
    for point in one.points:
        found[math.ceil(point.round)].append(point)
    return {n: (of[-1].device_seconds, float(np.mean([point.value for point in of]))) for n, of in found.items()}


def _costs(study: Study) -> str:
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for label, arms in _by_label(study).items():
        for arm in arms:
            for manifest in arm.state.steps.values():
                if manifest["step"] != "evaluate":
                    for phase, spent in manifest["device_seconds"].items():
                        found[f"{label}: {manifest['step']}"][phase] += spent / len(arms)
    if not found:
        return ""
    drawn = bars(
        [Bar(label, in_order(parts)) for label, parts in found.items()],
        "Of one run of each variant, the mean over n, rounds added up; a step that runs share counts in full for each.",
    )
    return f"<h2>Study {text_html(study.name)}: device-seconds by stage and phase</h2>{drawn}"


def _steps(study: Study) -> str:
    """A row for each variant's kind of step: rows, and what was dropped, added up."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for label, arms in _by_label(study).items():
        for arm in arms:
            for manifest in arm.state.steps.values():
                found[f"{label}: {manifest['step']}"].append(manifest)
    if not found:
        return ""
    rows = [
        [
            *(name, str(len(of))),
            *(f"{sum(manifest[rows] for manifest in of):,}" for rows in ("rows_in", "rows_out")),
            told_counts(sum((Counter(manifest["dropped"]) for manifest in of), Counter())),
        ]
        for name, of in found.items()
    ]
    heads = ("step", "times", "rows in", "rows out", "dropped, by reason")
    return (
        f"<h2>Study {text_html(study.name)}: steps, and what they dropped</h2>"
        f"<div class='wide'>{table(heads, rows, 'Added up over runs and rounds.')}</div>"
    )
