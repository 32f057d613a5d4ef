"""What a page says of a study: each variant's accuracy over device-seconds, and its result beside the others'."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts.columns import ABLATION, CURVES
from stages.artifacts.overlay import text_html
from stages.artifacts.store import iterate_rows
from stages.pages.chart import figure, number, table
from stages.pages.lines import Line, Panel, Point
from stages.study.curves import MODES, Run, line, read_runs
from stages.study.results import BASE

_FILES = (f"{CURVES.name}.parquet", f"{ABLATION.name}.parquet")


def is_study(folder: Path) -> bool:
    """Whether `df ablate` has recorded a run or its result there."""
    return any((folder / name).is_file() for name in _FILES)


def study_part(name: str, folder: Path) -> str:
    """A study, complete or under way."""
    runs = [run for run in read_runs(folder / _FILES[0]) if run.variant != BASE and len(run.points) > 1]
    result = folder / _FILES[1]
    rows = list(iterate_rows(result, ABLATION)) if result.is_file() else None
    return (
        f"<h2>Study {text_html(name)}</h2><p class='result'>{text_html(_sentence(runs, rows))}</p>"
        f"{'' if rows is None else _result(rows)}"
        f"{_curves(runs, 'test')}{_curves(runs, 'validation')}"
    )


def _sentence(runs: Sequence[Run], rows: Sequence[Mapping[str, Any]] | None) -> str:
    tested = sum(run.problems == "test" for run in runs)
    if rows is None:
        return f"Under way: {tested} runs on test problems and {len(runs) - tested} that tune a learning rate are done."
    values = {
        row["variant"]: row["value"] for row in rows if row["seed"] is None and row["measure"] == "sampled accuracy"
    }
    order = sorted(values, key=lambda variant: -values[variant])
    failed = sum(row["measure"] == "failed" for row in rows)
    best = ", ".join(f"{variant} {number(values[variant])}" for variant in order)
    return f"Sampled accuracy on test problems, best first: {best or 'none'}." + f" {failed} runs failed." * bool(
        failed
    )


def _result(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a variant, a column a measure over all seeds; then why runs failed."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row["seed"] is None:
            sign = "+" if any(word in row["measure"] for word in (" gain over ", " difference to ")) else ""
            ends = [f"{row[name]:{sign}.3f}" for name in ("low", "high") if row[name] is not None]
            interval = f" [{', '.join(ends)}]" if ends else ""
            cells[row["variant"]][row["measure"]] = f"{row['value']:{sign}.3f}{interval}"
    measures = list(dict.fromkeys(measure for of in cells.values() for measure in of))
    of_all = [[variant, *(of.get(measure, "") for measure in measures)] for variant, of in cells.items()]
    failed = [[row["variant"], str(row["seed"]), row["note"]] for row in rows if row["measure"] == "failed"]
    notes = table(("failed variant", "seed", "why"), failed) if failed else ""
    return table(("variant", *measures), of_all, "Over all seeds; brackets are 95% intervals.") + notes


def _curves(runs: Sequence[Run], problems: str) -> str:
    """A line a variant: the mean over its seeds, with a band of one standard error."""
    by_label: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        if run.problems == problems:
            rate = "" if problems == "test" else f", learning rate {run.learning_rate or 0:g}"
            by_label[run.variant + rate][run.seed] = run
    if not by_label:
        return ""
    drawn = []
    for mode in MODES:
        lines = [_line(f"{label} (n = {len(of)})", list(of.values()), mode) for label, of in by_label.items()]
        note = f"share of {problems} problems over device-seconds, mean over n seeds; band: one standard error"
        drawn.append(figure(Panel(f"{mode.capitalize()} accuracy, {problems}", note, lines), ["device_seconds"]))
    return f"<div class='panels study'>{''.join(drawn)}</div>"


def _line(label: str, runs: Sequence[Run], mode: str) -> Line:
    grid_X, values_SX = line(runs, mode, "device_seconds")
    rounds_X = np.mean([np.interp(grid_X, *_costs_and_rounds(run)) for run in runs], axis=0)
    mean_X = values_SX.mean(axis=0)
    if len(runs) == 1:
        return Line(label, [Point(*map(float, of)) for of in zip(rounds_X, grid_X, mean_X, strict=True)])
    error_X = values_SX.std(axis=0, ddof=1) / len(runs) ** 0.5
    ends = (mean_X - error_X, mean_X + error_X)
    return Line(label, [Point(*map(float, of)) for of in zip(rounds_X, grid_X, mean_X, *ends, strict=True)])


def _costs_and_rounds(run: Run) -> tuple[list[float], list[float]]:
    return [point.device_seconds for point in run.points], [point.round for point in run.points]
