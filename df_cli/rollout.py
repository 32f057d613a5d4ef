"""`df rollout`."""

from __future__ import annotations

from df_cli import options
from df_cli.stage_command import Stage, stage_command
from stages.recipe import Recipe


@stage_command("rollout", generates=True)
def rollout(
    recipe: Recipe, problems: options.Problems, policy: options.Policy, on_bad_row: options.OnBadRow = "fail"
) -> Stage:
    """Sample the policy's answers and score them (eq. 11)."""
    from stages.s3_rollout import Rollout

    return Rollout(recipe, problems, policy, on_bad_row)
