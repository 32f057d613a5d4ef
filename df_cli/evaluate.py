"""`df evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli import options
from df_cli.stage_command import Stage, stage_command
from stages.recipe import Recipe


@stage_command("evaluate", generates=True)
def evaluate(
    recipe: Recipe,
    problems: options.Problems,
    model: Annotated[Path, typer.Option("--policy", "--model", help="A checkpoint, or the output of a training step.")],
    on_bad_row: options.OnBadRow = "fail",
) -> Stage:
    """Score a model: greedy, sampled, and with the image removed."""
    from stages.evaluate import Evaluate

    return Evaluate(recipe, problems, model, on_bad_row)
