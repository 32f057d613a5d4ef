"""`df evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli.options import (
    DryRunOption,
    OutOption,
    OverwriteOption,
    ProblemsOption,
    RecipeOption,
    SeedOption,
    SetOption,
)
from df_cli.running import read_recipe, run_stage


def evaluate(
    problems: ProblemsOption,
    model: Annotated[Path, typer.Option("--model", help="A checkpoint, or the output of a training step.")],
    out: OutOption,
    recipe: RecipeOption = "digits",
    assignments: SetOption = [],  # noqa: B006, typer copies it
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Score a model: greedy, sampled, and with the image removed."""
    settings = read_recipe(recipe, assignments, seed)
    from stages.evaluate import Evaluate

    run_stage(Evaluate(settings, problems, model), out, overwrite=overwrite, dry_run=dry_run)
