"""`df train-policy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli.options import (
    DryRunOption,
    OutOption,
    OverwriteOption,
    PolicyOption,
    ProblemsOption,
    RecipeOption,
    SeedOption,
    SetOption,
)
from df_cli.running import read_recipe, run_stage


def train_policy(
    groups: Annotated[Path, typer.Option("--groups", help="Output of df build-masks.")],
    problems: ProblemsOption,
    policy: PolicyOption,
    out: OutOption,
    recipe: RecipeOption = "digits",
    assignments: SetOption = [],  # noqa: B006, typer copies it
    budget_device_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Train until this much is spent, whatever train.epochs says (compute matching)."),
    ] = None,
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train the policy on the tokens that were wrong (eq. 10-23)."""
    settings = read_recipe(recipe, assignments, seed)
    from stages.s5_train_policy import TrainPolicy

    stage = TrainPolicy(settings, groups, problems, policy, budget_device_seconds)
    run_stage(stage, out, overwrite=overwrite, dry_run=dry_run)
