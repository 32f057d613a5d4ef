"""`df sft-repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli.options import (
    DryRunOption,
    OutOption,
    OverwriteOption,
    RecipeOption,
    RepairSetOption,
    SeedOption,
    SetOption,
)
from df_cli.running import read_recipe, run_stage


def sft_repair(
    repair_set: RepairSetOption,
    model: Annotated[
        Path, typer.Option("--model", help="The policy's checkpoint, which the repair model starts from.")
    ],
    out: OutOption,
    recipe: RecipeOption = "digits",
    assignments: SetOption = [],  # noqa: B006, typer copies it
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train the repair model on annotated repairs (eq. 1)."""
    settings = read_recipe(recipe, assignments, seed)
    from stages.s1_sft_repair import SftRepair

    run_stage(SftRepair(settings, repair_set, model), out, overwrite=overwrite, dry_run=dry_run)
