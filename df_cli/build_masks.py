"""`df build-masks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli import options
from df_cli.stage_command import Stage, stage_command
from stages.recipe import Recipe


@stage_command
def build_masks(
    recipe: Recipe,
    rollouts: Annotated[Path, typer.Option("--rollouts", help="Output of df rollout.")],
    problems: options.Problems,
    repair_model: options.RepairModel,
    policy: options.Policy,
) -> Stage:
    """Repair the errors, align, write masks and optimization groups (eq. 5-8, 12-19)."""
    from stages.s4_build_masks import BuildMasks

    return BuildMasks(recipe, rollouts, problems, repair_model, policy)
