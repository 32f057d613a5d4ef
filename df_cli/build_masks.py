"""`df build-masks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli import options
from df_cli.stage_command import Stage, stage_command
from stages.recipe import Recipe


@stage_command
def build_masks(
    recipe: Recipe,
    rollouts: Annotated[Path | None, typer.Option("--rollouts", help="Output of df rollout.")] = None,
    problems: options.OptionalProblems = None,
    repair_model: options.OptionalRepairModel = None,
    policy: options.OptionalPolicy = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            help="Output of df build-masks, instead of the other inputs: its pairs get new masks; no model runs.",
        ),
    ] = None,
) -> Stage:
    """Repair the errors, align, write masks and optimization groups (eq. 5-8, 12-19)."""
    inputs = {
        "--rollouts": rollouts,
        "--problems": problems,
        "--repair-model": repair_model,
        "--policy": policy,
    }
    if pairs is not None:
        _refuse(inputs)
        from stages.s4_realign_pairs import RealignPairs

        return RealignPairs(recipe, pairs)
    from stages.s4_build_masks import BuildMasks

    return BuildMasks(recipe, *_require(inputs))


def _refuse(inputs: dict[str, Path | None]) -> None:
    given = [name for name, path in inputs.items() if path is not None]
    if given:
        raise typer.BadParameter(
            f"takes the place of {', '.join(given)}; leave those out, or leave out --pairs", param_hint="--pairs"
        )


def _require(inputs: dict[str, Path | None]) -> list[Path]:
    missing = [name for name, path in inputs.items() if path is None]
    if missing:
        raise typer.BadParameter(f"missing; give {', '.join(inputs)}, or --pairs alone", param_hint=", ".join(missing))
    return [path for path in inputs.values() if path is not None]
