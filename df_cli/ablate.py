"""`df ablate`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from df_cli import options
from df_cli.report import ablation_table, make_console, print_line
from stages.errors import RecipeError
from stages.recipe import shipped_recipes, shown_assignment
from stages.runtime.interruption import Requests


def ablate(
    train: Annotated[Path, typer.Option("--train", help="Problems to train on.")],
    test: Annotated[Path, typer.Option("--test", help="Problems to evaluate on.")],
    base: Annotated[Path, typer.Option("--base", "--policy", help="Policy that every variant starts from.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of all steps, their logs and the result.")],
    repair_set: Annotated[
        Path | None, typer.Option("--repair-set", help="Repair set, a Parquet file; for variants that read one.")
    ] = None,
    recipe: options.Recipe = None,
    assignments: options.Set = [],  # noqa: B006, typer copies it
    validation: Annotated[Path | None, typer.Option(help="Problems that ablate.learning_rates are tuned on.")] = None,
    only: Annotated[
        list[str], typer.Option("--variant", help="Run this variant alone; may be given several times.")
    ] = [],  # noqa: B006, typer copies it
    launch: Annotated[
        str | None, typer.Option(help="Options of `accelerate launch` for every step; this process if not given.")
    ] = None,
    train_launch: Annotated[
        str | None, typer.Option(help="The same for the steps that train; those of --launch if not given.")
    ] = None,
    stop_after: options.StopAfter = None,
    save_every: options.SaveEvery = None,
) -> None:
    """Run the recipe's variants with each seed and compare them; what is there already is not made again."""
    if recipe is None:
        raise RecipeError(f"no --recipe; give a file, or one of {', '.join(shipped_recipes())}")
    from stages.study.ablation import Ablation
    from stages.study.figure import FIGURE

    def words(options: str | None) -> tuple[str, ...] | None:
        return None if options is None else ("accelerate", "launch", *shlex.split(options), "-m", "df_cli")

    train_words = words(launch if train_launch is None else train_launch)
    ablation = Ablation(
        recipe,
        assignments,
        train,
        test,
        repair_set,
        base,
        out,
        validation,
        only,
        words(launch),
        train_words,
        Requests(stop_after_s=stop_after, save_every=save_every),
    )
    rows = ablation.run()
    make_console().print(ablation_table(rows, "recipe " + ", ".join([recipe, *map(shown_assignment, assignments)])))
    print_line(f"written to {out / 'ablation.parquet'}, drawn in {out / FIGURE}")
    if any(row["measure"] == "failed" for row in rows):
        raise typer.Exit(1)
