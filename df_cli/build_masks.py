"""`df build-masks`."""

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
    RepairModelOption,
    SeedOption,
    SetOption,
)
from df_cli.running import read_recipe, run_stage


def build_masks(
    rollouts: Annotated[Path, typer.Option("--rollouts", help="Output of df rollout.")],
    problems: ProblemsOption,
    repair_model: RepairModelOption,
    policy: PolicyOption,
    out: OutOption,
    recipe: RecipeOption = "digits",
    assignments: SetOption = [],  # noqa: B006, typer copies it
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Repair the errors, align, write masks and optimization groups (eq. 5-8, 12-19)."""
    settings = read_recipe(recipe, assignments, seed)
    from stages.s4_build_masks import BuildMasks

    stage = BuildMasks(settings, rollouts, problems, repair_model, policy)
    run_stage(stage, out, overwrite=overwrite, dry_run=dry_run)
