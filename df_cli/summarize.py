"""`df summarize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli.report import make_console, measures_table


def summarize(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as `make all` writes it.")],
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds the run has.")],
) -> None:
    """Print what a run came to and write it to summary.parquet."""
    from stages.summary import summarize_run

    console = make_console()
    console.print(measures_table(summarize_run(run, rounds)))
    console.print(f"written to {run / 'summary.parquet'}", markup=False)
