"""`df rl-repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli import options
from df_cli.stage_command import Stage, stage_command
from stages.recipe import Recipe


@stage_command("rl-repair", generates=True, trains=True)
def rl_repair(
    recipe: Recipe,
    problems: options.Problems,
    policy: options.Policy,
    repair_model: options.RepairModel,
    repair_set: Annotated[
        Path | None, typer.Option("--repair-set", help="Repair set, whose held-out tenth is repaired at the end.")
    ] = None,
    on_bad_row: options.OnBadRow = "fail",
) -> Stage:
    """Train the repair model by reinforcement: right answer, few edits, needs the image (eq. 2-4)."""
    from stages.s2_rl_repair import RlRepair

    return RlRepair(recipe, problems, policy, repair_model, repair_set, on_bad_row)
