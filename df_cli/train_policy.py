"""`df train-policy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli import options
from df_cli.stage_command import Stage, stage_command
from stages.recipe import Recipe


@stage_command("train-policy", trains=True)
def train_policy(
    recipe: Recipe,
    groups: Annotated[Path, typer.Option("--groups", help="Output of df build-masks.")],
    problems: options.Problems,
    policy: options.Policy,
    reference: Annotated[
        Path | None,
        typer.Option(help="Policy that the rounds start from, for a KL term; --policy if not given."),
    ] = None,
    budget_device_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Train until this much is spent, whatever train.epochs says (compute matching)."),
    ] = None,
    on_bad_row: options.OnBadRow = "fail",
) -> Stage:
    """Train the policy on the tokens that were wrong (eq. 10-23)."""
    from stages.s5_train_policy import TrainPolicy

    return TrainPolicy(recipe, groups, problems, policy, reference, budget_device_seconds, on_bad_row)
