"""`df audit-sample`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from df_cli import options
from df_cli.report import print_outcome


def audit_sample(
    episodes: options.Episodes,
    problems: options.Problems,
    out: options.Out,
    count: Annotated[int, typer.Option(min=1, help="How many repairs to draw, spread evenly over the strata.")] = 200,
    per_stratum: Annotated[
        bool, typer.Option("--per-stratum", help="Draw --count of each stratum, instead of in all.")
    ] = False,
    file_format: Annotated[Literal["csv", "parquet"], typer.Option("--format", help="Format of the sheet.")] = "csv",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
) -> None:
    """Draw audited repairs, stratified by verdict, for a person to label without knowing it."""
    from stages.artifacts.stage import execute
    from stages.audit_sample import AuditSample
    from stages.runtime.processes import is_main

    stage = AuditSample(episodes, problems, count, per_stratum, seed, file_format)
    outcome = execute(stage, out, overwrite=overwrite, dry_run=dry_run)
    if is_main():
        print_outcome(outcome)
