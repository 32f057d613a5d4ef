"""`df recipe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from df_cli import options
from df_cli.report import print_line
from stages.errors import RecipeError
from stages.recipe import Recipe, load_recipe, recipe_file, recipe_with, shipped_recipes

HELP = "Look at recipes: list the shipped ones, show every field's value, copy one to change it."
app = typer.Typer(help=HELP, no_args_is_help=True)
app.__doc__ = HELP


@app.command("list")
def list_recipes() -> None:
    """List the shipped recipes, each with its first line."""
    names = shipped_recipes()
    for name in names:
        first = recipe_file(name).read_text(encoding="utf-8").partition("\n")[0]
        print_line(f"{name:<{max(map(len, names))}}  {first.lstrip('# ')}")


@app.command("show")
def show(
    recipe: Annotated[str, typer.Argument(help="Recipe file, name of a shipped recipe, or a step's output folder.")],
    assignments: options.Set = [],  # noqa: B006, typer copies it
) -> None:
    """Print every field with its value as YAML, defaults included; of a step's folder, those it was made with."""
    values = _recipe(recipe, assignments).whole()
    print_line(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip())


@app.command("copy")
def copy(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a recipe file.")],
    file: Annotated[Path, typer.Argument(help="Where the copy goes; nothing may be there.")],
) -> None:
    """Copy a recipe with its comments to a file of your own."""
    content = recipe_file(recipe).read_bytes()
    try:
        with file.open("xb") as copied:
            copied.write(content)
    except OSError as error:
        raise RecipeError(f"{file}: cannot be written ({error.strerror}); name another file") from error
    print_line(f"written to {file}")


def _recipe(name: str, assignments: list[str]) -> Recipe:
    from stages.artifacts.origin import read_origin

    origin = read_origin(Path(name)) if Path(name).is_dir() else None
    if origin is None:
        return load_recipe(name, assignments)
    return recipe_with(origin.parsed(), Path(name), assignments)
