"""`df report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli.report import print_line
from stages.errors import DataError


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders of runs (`make all`, `df loop`), studies (`df ablate`) or evaluations (`df evaluate`), of "
            "which the first is what the others are compared with.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The file; report.html in the folder if not given.")] = None,
    megabytes: Annotated[
        float, typer.Option(min=1, help="Largest size of the file; rollouts and pairs that do not fit are left out.")
    ] = 5,
) -> None:
    """Write a page that shows runs, studies, complete or under way, or evaluations, to be opened in a browser."""
    from stages.artifacts.writing import write_text
    from stages.pages.page import MEGABYTE, report_page
    from stages.run_folder import PAGE_FILE

    if out is None and len(runs) > 1:
        raise DataError(f"{len(runs)} folders: give the file with --out")
    file = runs[0] / PAGE_FILE if out is None else out
    page = report_page(runs, int(megabytes * MEGABYTE))
    write_text(file, page)
    print_line(f"written to {file}")
