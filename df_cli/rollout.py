"""`df rollout`."""

from __future__ import annotations

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


def rollout(
    problems: ProblemsOption,
    policy: PolicyOption,
    out: OutOption,
    recipe: RecipeOption = "digits",
    assignments: SetOption = [],  # noqa: B006, typer copies it
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Sample the policy's answers and score them (eq. 11)."""
    settings = read_recipe(recipe, assignments, seed)
    from stages.s3_rollout import Rollout

    run_stage(Rollout(settings, problems, policy), out, overwrite=overwrite, dry_run=dry_run)
