"""Options that every command shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeOption = Annotated[str, typer.Option("--recipe", help="Recipe file, or the name of a shipped recipe.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one field of the recipe; repeatable.")
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of this step; the recipe's if not given.")]
OutOption = Annotated[Path, typer.Option("--out", help="Output folder of this step.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there already.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check inputs and recipe, print the plan, stop.")]
ProblemsOption = Annotated[Path, typer.Option("--problems", help="Problems, a Parquet file or a folder of shards.")]
PolicyOption = Annotated[Path, typer.Option("--policy", help="Policy: a checkpoint, or a train-policy output.")]
RepairModelOption = Annotated[
    Path, typer.Option("--repair-model", help="Repair model: a checkpoint, or an sft-repair or rl-repair output.")
]
RepairSetOption = Annotated[Path, typer.Option("--repair-set", help="Repair set, a Parquet file.")]
