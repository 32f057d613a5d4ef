"""What a user reads when a command is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from stages.untrusted.printable import told

if TYPE_CHECKING:
    from stages.artifacts.stage import Outcome
    from stages.measures.accuracy import Measure

SUMMARY_FILE = "summary.parquet"
LOG_WIDTH = 110


def make_console() -> Console:
    """Plain output; where there is no terminal to fit into, wide enough for the tables."""
    return Console(highlight=False, soft_wrap=True, width=None if Console().is_terminal else LOG_WIDTH)


def print_line(text: str) -> None:
    """One line as it is, whatever is in it."""
    make_console().print(cell(text))


def cell(text: str) -> Text:
    """A text that somebody else may have written, as a table may have it: no markup, nothing that a terminal obeys."""
    return Text(told(text))


def print_outcome(outcome: Outcome) -> None:
    """Print a dry run's plan, a run's summary, or that there was nothing to do."""
    console = make_console()
    if outcome.manifest is None:
        console.print_json(data=outcome.plan, ensure_ascii=True)
    elif outcome.ran:
        console.print(summary_table(outcome))
        if (outcome.out / SUMMARY_FILE).is_file():
            console.print(measures_table(read_measures(outcome.out / SUMMARY_FILE), recipe_title([outcome.manifest])))
    else:
        print_complete(outcome.out)


def print_complete(out: Path, gone: Sequence[str] = ()) -> None:
    """That there was nothing to do; `gone` are files of its models that are not there any more."""
    others = f" and {len(gone) - 1} more" if gone[1:] else ""
    lost = f" ({gone[0]}{others} deleted since; --overwrite makes the step again)" if gone else ""
    print_line(f"{out}: complete and up to date, nothing to do{lost}")


def summary_table(outcome: Outcome) -> Table:
    """Rows in and out, what was dropped and why, what it counted and cost, where it lies."""
    from stages.artifacts.origin import Origin

    manifest = outcome.manifest or {}
    table = Table("", Column(overflow="fold"), title=manifest["step"], show_header=False, title_justify="left")
    if "origin" in manifest:
        table.add_row("recipe", cell(str(Origin(**manifest["origin"]))))
    table.add_row("rows in", str(manifest["rows_in"]))
    table.add_row("rows out", str(manifest["rows_out"]))
    for reason, rows in sorted(manifest["dropped"].items()):
        table.add_row(cell(f"dropped: {reason}"), str(rows))
    for name, value in sorted(manifest["counts"].items()):
        table.add_row(cell(name.replace("_", " ")), str(value))
    for phase, seconds in manifest["device_seconds"].items():
        table.add_row(cell(f"device-seconds: {phase}"), f"{seconds:.1f}")
    table.add_row("output", cell(str(outcome.out)))
    return table


def recipe_title(manifests: Iterable[Mapping[str, Any]]) -> str:
    """The recipes that these steps were made with, each once."""
    from stages.artifacts.origin import Origin

    return "; ".join(dict.fromkeys(f"recipe {Origin(**m['origin'])}" for m in manifests if "origin" in m))


def read_measures(path: Path) -> list[Measure]:
    """Rows of a `summary` artifact."""
    from stages.artifacts.columns import SUMMARY
    from stages.artifacts.store import iterate_rows
    from stages.measures.accuracy import Measure

    return [Measure(**row) for row in iterate_rows(path, SUMMARY)]


def measures_table(measures: Iterable[Measure], title: str) -> Table:
    """Measures with their 95% intervals, a section at a time."""
    table = Table("", "measure", "value", "95% interval", "n", title=cell(title), title_justify="left")
    last = None
    for measure in measures:
        if last not in (None, measure.section):
            table.add_section()
        interval = "" if measure.low is None else f"{measure.low:.3f} to {measure.high:.3f}"
        name = "" if measure.section == last else measure.section
        value = f"{measure.value:.1f}" if measure.section == "device-seconds" else f"{measure.value:.3f}"
        n = "" if measure.n is None else str(measure.n)
        table.add_row(cell(name), cell(measure.measure), value, interval, n)
        last = measure.section
    return table


def ablation_table(rows: Iterable[Mapping[str, Any]], title: str) -> Table:
    """Rows of `ablation`, those of single runs first."""
    columns = ("variant", "seed", "measure", "value", "95% interval", "n", "")
    table = Table(*columns, title=cell(title), title_justify="left")
    for row in rows:
        interval = "" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
        n, seed = ("" if row[name] is None else str(row[name]) for name in ("n", "seed"))
        value = f"{row['value']:{'g' if row['measure'] == 'learning rate' else '.3f'}}"
        cells = (row["variant"], seed, row["measure"], value, interval, n, row["note"] or "")
        table.add_row(*map(cell, cells))
    return table


def agreement_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows of `audit_agreement`, a section of each estimate at a time."""
    table = Table("", "estimate", "measure", "value", "95% interval", "n", title_justify="left")
    last = None
    for row in rows:
        heading = (row["section"], row["estimate"])
        if last not in (None, heading):
            table.add_section()
        value = row["note"] if row["value"] is None else f"{row['value']:.3f}".removesuffix(".000")
        interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        cells = (*(("", "") if heading == last else heading), row["measure"], value, interval, str(row["n"]))
        table.add_row(*map(cell, cells))
        last = heading
    return table
