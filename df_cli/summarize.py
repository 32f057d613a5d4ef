"""`df summarize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli.report import make_console, measures_table, print_line, recipe_title


def summarize(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as `make all` writes it.")],
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds the run has.")],
) -> None:
    """Print what a run came to and write it to summary.parquet."""
    from stages.run_folder import manifests
    from stages.summary import summarize_run

    measures = summarize_run(run, rounds)
    make_console().print(measures_table(measures, recipe_title(manifests(run, rounds).values())))
    print_line(f"written to {run / 'summary.parquet'}")
