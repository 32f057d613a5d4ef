"""Options that several commands share; used as `options.Name` in their signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[str, typer.Option("--recipe", help="Recipe file, or the name of a shipped recipe.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one field of the recipe; repeatable.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of this step; the recipe's if not given.")]
Out = Annotated[Path, typer.Option("--out", help="Output folder of this step.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there already.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check inputs and recipe, print the plan, stop.")]
Problems = Annotated[Path, typer.Option("--problems", help="Problems, a Parquet file or a folder of shards.")]
Policy = Annotated[Path, typer.Option("--policy", help="Policy: a checkpoint, or a train-policy output.")]
RepairModel = Annotated[
    Path, typer.Option("--repair-model", help="Repair model: a checkpoint, or an sft-repair or rl-repair output.")
]
