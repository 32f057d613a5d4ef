"""`df rl-repair`."""

from __future__ import annotations

from df_cli.options import (
    DryRunOption,
    OutOption,
    OverwriteOption,
    PolicyOption,
    ProblemsOption,
    RecipeOption,
    RepairModelOption,
    RepairSetOption,
    SeedOption,
    SetOption,
)
from df_cli.running import read_recipe, run_stage


def rl_repair(
    problems: ProblemsOption,
    policy: PolicyOption,
    repair_model: RepairModelOption,
    repair_set: RepairSetOption,
    out: OutOption,
    recipe: RecipeOption = "digits",
    assignments: SetOption = [],  # noqa: B006, typer copies it
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train the repair model by reinforcement: right answer, few edits, needs the image (eq. 2-4)."""
    settings = read_recipe(recipe, assignments, seed)
    from stages.s2_rl_repair import RlRepair

    stage = RlRepair(settings, problems, policy, repair_model, repair_set)
    run_stage(stage, out, overwrite=overwrite, dry_run=dry_run)
