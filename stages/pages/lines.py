"""What changes over a run, as lines over rounds and over device-seconds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from stages.artifacts.columns import METRICS, REPAIRS, ROLLOUTS, TableSpec
from stages.artifacts.ledger import training_cost
from stages.artifacts.store import ROWS_PER_GROUP, iterate_rows, parquet_files, read_tables
from stages.chain import MASKS, ROLLOUT, TRAIN, round_folder
from stages.measures.accuracy import Measure
from stages.pages.state import RunState
from stages.summary import measure_round

LONGEST = 400
"""Points of one line; of more, evenly many are left out."""


class Point(NamedTuple):
    """A number on the way, with its 95% interval if it has one."""

    round: float
    device_seconds: float
    value: float
    low: float | None = None
    high: float | None = None
    rollouts: float | None = None
    """Responses sampled by then; None where no line is drawn over them."""


@dataclass(frozen=True)
class Line:
    """Points in order."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """Lines that are drawn together; `note` says what they are, units included."""

    title: str
    note: str
    lines: Sequence[Line] = field(default=())


ACCURACY = Panel("Accuracy", "share of the evaluation's problems; sampled: mean over the draws")
ROLLOUTS_PANEL = Panel("Rollouts", "reward: mean over scored rollouts; correct: share of all")
TRIGGERED = Panel("p, rollouts that were repaired", "share of the round's rollouts that triggered a repair (eq. 29)")
FEASIBLE = Panel("Feasible share", "share of the repaired errors with a selected repair (eq. 6, 7)")
EDIT_COST = Panel("Edit cost", "mean edit cost C of the selected repairs (eq. 2)")
MARKED = Panel("Marked tokens", "share of the tokens in pairs that the masks mark (eq. 8)")
IN_ROUND = {
    "correct rollouts": ROLLOUTS_PANEL,
    "p, rollouts that triggered a repair (eq. 29)": TRIGGERED,
    "errors with a selected repair": FEASIBLE,
    "marked tokens": MARKED,
}
"""Which panel shows a measure of the summary."""
STEP_REWARD = Panel("Reward in training", "over the scored rollouts of each optimizer step's problems")
IN_TRAINING = {
    "reward_mean": STEP_REWARD,
    "reward_std": STEP_REWARD,
    "response_length": Panel("Response length", "tokens, mean over the rollouts of each optimizer step's problems"),
    "cut_share": Panel("Cut responses", "share of those rollouts that ends at the length limit"),
    "groups_without_contrast": Panel(
        "Groups without contrast", "share of each optimizer step's groups whose rewards are all equal"
    ),
    "entropy": Panel("Entropy", "nats, mean over the tokens with an open gate, each optimizer step"),
    "ratio_mean": Panel("Ratio", "mean token ratio to the old policy over the tokens with an open gate"),
    "kl_old": Panel("KL to the old policy", "k3 estimate of KL(old ‖ new), nats, over the tokens with an open gate"),
    "kl_ref": Panel("KL to the reference", "estimate of KL(new ‖ reference), nats, over all tokens of responses"),
    "grad_norm": Panel("Gradient norm", "before clipping, each optimizer step"),
    "mismatch_mean": Panel("Sampler mismatch", "mean mismatch of the sampler's log-probs and the trainer's"),
}
"""Which panel shows a metric of `df train-policy`; its name goes on with the role of a row."""
LABELS = {
    "error": "errors",
    "repair": "repairs",
    "reward_mean": "mean",
    "reward_std": "standard deviation",
    "response_length": "rollouts",
    "cut_share": "rollouts",
    "groups_without_contrast": "groups",
}
"""Words for a role, and for a metric that is not over rows."""
PANELS = (ACCURACY, ROLLOUTS_PANEL, TRIGGERED, FEASIBLE, EDIT_COST, MARKED, *dict.fromkeys(IN_TRAINING.values()))


def lines_of(state: RunState, evaluations: Mapping[int, Sequence[Measure]]) -> dict[str, list[Line]]:
    """A run's lines by the title of their panel; `evaluations` are measures by the round that they follow."""
    found: dict[str, list[Line]] = defaultdict(list)
    every: Iterable[tuple[str, str, Iterable[Point]]] = (
        *(
            (ACCURACY.title, mode, _accuracies(state, evaluations, f"{mode} accuracy"))
            for mode in ("sampled", "greedy")
        ),
        (ROLLOUTS_PANEL.title, "mean reward", _rewards(state)),
        (EDIT_COST.title, "selected repairs", _costs(state)),
        *_shares(state),
        *_training(state),
    )
    for title, label, some in every:
        found[title].append(Line(label, thinned([point for point in some if math.isfinite(point.value)])))
    return {title: kept for title, lines in found.items() if (kept := [line for line in lines if line.points])}


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most `LONGEST` of them, the last among them."""
    every = math.ceil(len(points) / LONGEST)
    return points[:: -every or None][::-1] if every > 1 else points


def _accuracies(state: RunState, evaluations: Mapping[int, Sequence[Measure]], name: str) -> Iterator[Point]:
    for number, measures in evaluations.items():
        for m in measures:
            if m.measure == name:
                yield Point(number, state.cost_after(number), m.value, m.low, m.high)


def _rounds(state: RunState, *steps: str) -> list[int]:
    """Those of which these steps are complete."""
    return [n for n in range(1, state.rounds + 1) if all(state.of_round(n, step) for step in steps)]


def _shares(state: RunState) -> Iterator[tuple[str, str, list[Point]]]:
    measured = {n: measure_round(n, round_folder(state.folder, n)) for n in _rounds(state, ROLLOUT, MASKS)}
    for name, panel in IN_ROUND.items():
        points = [_during(state, n, m) for n, measures in measured.items() for m in measures if m.measure == name]
        yield panel.title, name, points


def _during(state: RunState, number: int, measure: Measure) -> Point:
    """Where the round's policy was trained on it."""
    return Point(number, state.cost_before(f"round-{number}/{TRAIN}"), measure.value, measure.low, measure.high)


def _rewards(state: RunState) -> Iterator[Point]:
    for number in range(1, state.rounds + 1):
        if folder := state.with_rows(number, ROLLOUT, ROLLOUTS):
            yield _mean(state, number, _values(folder, ROLLOUTS, "reward"))


def _costs(state: RunState) -> Iterator[Point]:
    for number in range(1, state.rounds + 1):
        if folder := state.with_rows(number, MASKS, REPAIRS):
            yield _mean(state, number, _values(folder, REPAIRS, "cost", only="chosen"))


def _mean(state: RunState, number: int, values: Iterable[float]) -> Point:
    total, count = 0.0, 0
    for value in values:
        total, count = total + value, count + 1
    return _during(state, number, Measure("", "", total / count if count else math.nan))


def _values(folder: Path, spec: TableSpec[Any], column: str, only: str | None = None) -> Iterator[float]:
    """Those of a column that are not null, of every row or of one `selection`."""
    columns = [column] if only is None else [column, "selection"]
    for file in parquet_files(folder, spec):
        for table in read_tables(file, ROWS_PER_GROUP, columns):
            rows = table if only is None else table.filter(pc.equal(table["selection"], only))
            yield from rows[column].drop_null().to_pylist()


def _training(state: RunState) -> Iterator[tuple[str, str, list[Point]]]:
    """Metrics of every round's training, one line for a role; an optimizer step is a share of its round and cost."""
    found: dict[str, list[Point]] = defaultdict(list)
    for number in _rounds(state, TRAIN):
        rows = list(iterate_rows(round_folder(state.folder, number) / TRAIN / f"{METRICS.name}.parquet", METRICS))
        steps = {step: place for place, step in enumerate(sorted({row["step"] for row in rows}), 1)}
        before = state.cost_before(f"round-{number}/{TRAIN}")
        cost = training_cost(state.steps[f"round-{number}/{TRAIN}"])
        for row in rows:
            share = steps[row["step"]] / len(steps)
            found[row["metric"]].append(Point(number - 1 + share, before + share * cost, row["value"]))
    for metric, points in found.items():
        name, _, role = metric.partition("/")
        if name in IN_TRAINING:
            yield IN_TRAINING[name].title, LABELS.get(role or name, role or "all rows"), points
