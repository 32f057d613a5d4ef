"""`df repair-set`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli import options
from df_cli.stage_command import Stage, stage_command
from stages.recipe import Recipe

app = typer.Typer(
    help="Make the repair set: write a sheet of the policy's errors, read it back annotated.", no_args_is_help=True
)


@app.command("sheet")
@stage_command("repair-set sheet", generates=True)
def sheet(
    recipe: Recipe,
    problems: options.Problems,
    policy: options.Policy,
    count: Annotated[int, typer.Option("--count", min=1, help="How many errors to annotate.")] = 1000,
    on_bad_row: options.OnBadRow = "fail",
) -> Stage:
    """Sample errors of the policy and write them as tasks for Label Studio and as JSON lines."""
    from stages.repair_sheet import RepairSheet

    return RepairSheet(recipe, problems, policy, count, on_bad_row)


@app.command("read")
@stage_command("repair-set read")
def read(
    recipe: Recipe,
    sheet: Annotated[Path, typer.Option("--sheet", help="Output of df repair-set sheet.")],
    annotated: Annotated[
        Path, typer.Option("--annotated", help="Label Studio's JSON export of it, or its sheet.jsonl filled in.")
    ],
    policy: options.Policy,
    on_bad_row: options.OnBadRow = "fail",
) -> Stage:
    """Check every annotated repair and write repair_set.parquet, its held-out end apart from the rest."""
    from stages.repair_set import ReadRepairSet

    return ReadRepairSet(recipe, sheet, annotated, policy, on_bad_row)
