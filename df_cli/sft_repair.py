"""`df sft-repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from df_cli import options
from df_cli.stage_command import Stage, stage_command
from stages.recipe import Recipe


@stage_command("sft-repair", trains=True)
def sft_repair(
    recipe: Recipe,
    repair_set: Annotated[Path, typer.Option("--repair-set", help="Repair set, a Parquet file.")],
    model: Annotated[
        Path, typer.Option("--policy", "--model", help="Policy, which the repair model starts from: a checkpoint.")
    ],
    prompt: Annotated[
        Literal["repair", "policy"],
        typer.Option(
            help="repair: what a repair model is shown; policy: the question alone, which trains a policy on the "
            "repairs as answers."
        ),
    ] = "repair",
    on_bad_row: options.OnBadRow = "fail",
) -> Stage:
    """Train the repair model on annotated repairs (eq. 1), or the policy on the repairs as answers."""
    from stages.s1_sft_repair import SftRepair

    return SftRepair(recipe, repair_set, model, prompt, on_bad_row)
