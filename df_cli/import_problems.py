"""`df import-problems`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from df_cli import options
from df_cli.report import cell, make_console, print_outcome
from stages.errors import DataError
from stages.importing.presets import PRESETS, AnswerForm, Layout

if TYPE_CHECKING:
    from stages.import_problems import Understood

_CELL = 400
"""Characters of a text that a sample shows."""
_COLUMNS = typer.Option(
    metavar="COLUMN", help="Column of the images, repeatable (one image each); paths start at the file's folder."
)


def import_problems(
    source: Annotated[str, typer.Argument(help="Parquet, JSONL or CSV file, folder, or name on the Hugging Face hub.")],
    out: Annotated[Path | None, typer.Option("--out", help="Output folder of this step.")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Show what the first rows are taken for, write nothing.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=f"A known layout: {', '.join(PRESETS)}.")] = None,
    question: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the question; a dot goes into a struct.")
    ] = None,
    images: Annotated[list[str] | None, _COLUMNS] = None,
    answer: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the reference answer.")] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column of the list of choices; repeatable, one choice each."),
    ] = None,
    answer_form: Annotated[
        AnswerForm | None, typer.Option(help="How the answer names a choice; `either`: letter or text.")
    ] = None,
    kind: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column to report by.")] = None,
    id: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of unique ids; '' makes them from row numbers.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split, where there are several.")] = None,
    config_name: Annotated[str | None, typer.Option(help="Config (subset), where there are several.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read the first rows only.")] = None,
    split_test: Annotated[
        float | None,
        typer.Option(
            "--split-test",
            metavar="SHARE",
            help="Keep so many of the problems apart to test on, none with an image of the others; --out then holds "
            "problems_train and problems_test.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
) -> None:
    """Make `problems` of a dataset; rows that do not fit are counted by reason."""
    columns = {"question": question, "images": images, "answer": answer, "choices": choices, "kind": kind, "id": id}
    layout = _layout(preset, columns | {"answer_form": answer_form})
    if (out is None) == (sample is None):
        raise typer.BadParameter("give --out to import, or --sample to look first")
    if split_test is not None and not 0 < split_test < 1:
        raise typer.BadParameter(f"{split_test:g} is no share between 0 and 1", param_hint="--split-test")
    from stages.import_problems import ImportProblems

    stage = ImportProblems(source, layout, split, config_name, limit, split_test)
    if sample is not None:
        make_console().print(_sample_table(stage.sample(sample)))
        return
    assert out is not None
    stage.check_output(out)
    from stages.artifacts.stage import execute
    from stages.runtime.processes import is_main

    outcome = execute(stage, out, overwrite=overwrite, dry_run=dry_run)
    if is_main():
        print_outcome(outcome)


def _layout(preset: str | None, options: dict[str, Any]) -> Layout:
    if preset is not None and preset not in PRESETS:
        raise DataError(f"--preset {preset}: not one of {', '.join(PRESETS)}")
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items() if value
    }
    if options["id"] == "":
        given["id"] = None
    return replace(PRESETS[preset] if preset else Layout(), **given)


def _sample_table(rows: list[Understood]) -> Table:
    table = Table("id", "question", "images", "answer", "read as", "kind", title_justify="left", show_lines=True)
    for row in rows:
        if row.reason:
            table.add_row(_cut(row.problem_id), cell(f"does not fit: {row.reason}"))
        else:
            texts = (row.problem_id, row.question, row.images, row.answer, row.read_as, row.kind)
            table.add_row(*map(_cut, texts))
    return table


def _cut(text: str) -> Text:
    return cell(text if len(text) <= _CELL else text[:_CELL] + "…")
