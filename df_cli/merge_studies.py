"""`df merge-studies`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli.report import ablation_table, make_console, print_line
from stages.errors import DataError


def merge_studies(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]STUDY",
            help="Outputs of `df ablate`, or files of `curves`; NAME tells the runs of one from another's.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs, and of their comparison.")],
    only: Annotated[
        list[str],
        typer.Option(
            "--variant",
            metavar="[NAME/]VARIANT",
            help="Take this variant's runs alone; may be given several times. All if not given.",
        ),
    ] = [],  # noqa: B006, typer copies it
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Compare the others with this variant, on test problems and at one cost. No comparison if not given."
        ),
    ] = None,
    read_at: Annotated[
        list[float], typer.Option(min=0, help="Device-seconds to compare at too; may be given several times.")
    ] = [],  # noqa: B006, typer copies it
    measured: Annotated[
        str, typer.Option("--measure", help="What is compared: accuracy, or what else was counted in the answers.")
    ] = "accuracy",
) -> None:
    """Put the runs of several studies into one file and, with --baseline, one table and one figure."""
    from stages.artifacts.columns import ABLATION, CURVES
    from stages.artifacts.lock import lock_output
    from stages.artifacts.store import write_rows
    from stages.study.curves import rows_of
    from stages.study.figure import FIGURE, draw
    from stages.study.merging import compared, merge, select

    runs = select(merge([_named(study) for study in studies]), only)
    file = out / f"{CURVES.name}.parquet"
    if file.exists():
        raise DataError(f"{out}: a study is there already; give another folder with --out")
    if baseline is None:
        with lock_output(out):
            write_rows(file, CURVES, rows_of(runs))
        print_line(f"written to {file}")
        return
    tested, rows = compared(runs, baseline, read_at, measured)
    with lock_output(out):
        write_rows(file, CURVES, rows_of(runs))
        write_rows(out / f"{ABLATION.name}.parquet", ABLATION, rows)
        draw(tested, out / FIGURE, measured)
    make_console().print(ablation_table(rows, ", ".join(studies)))
    print_line(f"written to {out}, drawn in {out / FIGURE}")


def _named(study: str) -> tuple[str | None, Path]:
    """Of `NAME=STUDY`, or of a path alone."""
    name, named, path = study.partition("=")
    return (name, Path(path)) if named and not Path(study).exists() else (None, Path(study))
