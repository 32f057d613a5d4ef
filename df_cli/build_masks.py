"""`df build-masks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli import options
from df_cli.stage_command import Stage, stage_command
from stages.recipe import Recipe


@stage_command("build-masks", generates=True)
def build_masks(
    recipe: Recipe,
    rollouts: Annotated[Path | None, typer.Option("--rollouts", help="Output of df rollout.")] = None,
    problems: options.OptionalProblems = None,
    repair_model: options.OptionalRepairModel = None,
    policy: options.OptionalPolicy = None,
    preferences: Annotated[
        Path | None,
        typer.Option(
            "--preferences",
            help="Preference data, instead of --rollouts and --problems: the rejected responses are the errors.",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            help="Output of df build-masks, instead of the other inputs: its pairs get new masks; no model runs.",
        ),
    ] = None,
    on_bad_row: options.OnBadRow = "fail",
) -> Stage:
    """Repair the errors, align, write masks and optimization groups (eq. 5-8, 12-19)."""
    data = {"--rollouts": rollouts, "--problems": problems}
    models = {"--repair-model": repair_model, "--policy": policy}
    if pairs is not None:
        _refuse("--pairs", data | models | {"--preferences": preferences})
        from stages.s4_realign_pairs import RealignPairs

        return RealignPairs(recipe, pairs)
    if preferences is not None:
        _refuse("--preferences", data)
        data = {"--preferences": preferences}
    required = data | models
    if recipe.masks.repairer == "sibling":
        del required["--repair-model"]
    given = _require(required)
    from stages.s4_build_masks import BuildMasks, BuildMasksFromPreferences

    if preferences is not None:
        return BuildMasksFromPreferences(recipe, preferences, repair_model, given["--policy"], on_bad_row)
    return BuildMasks(recipe, given["--rollouts"], given["--problems"], repair_model, given["--policy"], on_bad_row)


def _refuse(option: str, inputs: dict[str, Path | None]) -> None:
    given = [name for name, path in inputs.items() if path is not None]
    if given:
        raise typer.BadParameter(
            f"takes the place of {', '.join(given)}; leave those out, or leave out {option}", param_hint=option
        )


def _require(inputs: dict[str, Path | None]) -> dict[str, Path]:
    missing = [name for name, path in inputs.items() if path is None]
    if missing:
        without = "; errors are repaired without one by --set masks.repairer=sibling"
        raise typer.BadParameter(
            f"missing; give {', '.join(inputs)}, or --pairs alone{without if '--repair-model' in missing else ''}",
            param_hint=", ".join(missing),
        )
    return {name: path for name, path in inputs.items() if path is not None}
