"""`df summarize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli.report import make_console, measures_table, print_line, recipe_title
from stages.errors import DataError


def summarize(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER",
            help="Folder of a run (`make all`, `df loop`), or folders of evaluations (`df evaluate`), of which the "
            "first is what the others are compared with.",
        ),
    ],
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="How many rounds of the run; up to the last policy evaluated if not given."),
    ] = None,
) -> None:
    """Print what a run came to and write it to its summary.parquet, or print how evaluations compare."""
    from stages.artifacts.manifests import read_manifest
    from stages.run_folder import SUMMARY_FILE, last_evaluated, manifests
    from stages.summary import compare_evaluations, is_evaluation, summarize_run

    if all(map(is_evaluation, folders)):
        if rounds is not None:
            raise DataError("--rounds is a run's; evaluations have none")
        measures = compare_evaluations(folders)
        make_console().print(measures_table(measures, recipe_title(map(read_manifest, folders))))
        return
    if len(folders) > 1:
        raise DataError(f"{len(folders)} folders: give evaluations alone, or one run; df report takes several")
    (run,) = folders
    rounds = rounds or last_evaluated(run)
    measures = summarize_run(run, rounds)
    make_console().print(measures_table(measures, recipe_title(manifests(run, rounds).values())))
    print_line(f"written to {run / SUMMARY_FILE}")
