"""`df summarize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from df_cli.report import measures_table


def summarize(run: Annotated[Path, typer.Argument(help="Folder of a run, as `make all` writes it.")]) -> None:
    """Print what a run came to and write it to summary.parquet."""
    from stages.summary import summarize_run

    console = Console(highlight=False, soft_wrap=True)
    console.print(measures_table(summarize_run(run)))
    console.print(f"written to {run / 'summary.parquet'}", markup=False)
