"""What every stage's command has in common: its options, running the stage, telling what came of it."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

from df_cli import options
from df_cli.report import print_complete, print_outcome
from stages.errors import ArtifactError
from stages.recipe import Recipe, load_recipe, recipe_with, shipped_recipes, shown_assignment
from stages.runtime.interruption import Requests

if TYPE_CHECKING:
    from stages.artifacts.origin import Origin
    from stages.artifacts.up_to_date import Standing


LAUNCHED = "WORLD_SIZE"
"""Environment variable that launchers set for each of several processes."""


class Stage(Protocol):
    """`stages.artifacts.stage.Stage`, which imports too much for `df --help`."""

    @property
    def inputs(self) -> Any: ...

    def plan(self) -> Any: ...

    def run(self, step: Any) -> None: ...


@dataclass(frozen=True)
class Asked:
    """A command line of a step, read: the recipe with its changes, the output folder, and the step's own options."""

    step: str
    recipe: Recipe
    origin: Origin
    out: Path
    given: dict[str, Any]
    """The step's own options by name."""

    def standing(self) -> Standing:
        """Compare the output folder with this command line, without importing torch.

        Raises:
            ArtifactError: a file of the output differs from its manifest.
        """
        from stages.artifacts.up_to_date import Standing, standing
        from stages.declared import declare

        on_bad_row = self.given.get("on_bad_row", "fail")
        declared = declare(
            self.step, self.recipe, {name: value for name, value in self.given.items() if name != "on_bad_row"}
        )
        return Standing() if declared is None else standing(self.out, declared, on_bad_row)


def asked(
    step: str,
    given: dict[str, Any],
    *,
    out: Path,
    recipe: str | None,
    assignments: list[str],
    seed: int | None,
    engine: str | None = None,
    **_others: Any,
) -> Asked:
    """Read a command line; where it names no recipe, take the one that the folders it names were made with.

    Raises:
        RecipeError: the recipe cannot be read, or none is named and the folders tell none or several.
    """
    from stages.artifacts.origin import Origin, inherited

    assignments = [*assignments, *([] if engine is None else [f"engine.name={engine}"])]
    if recipe is None:
        paths = [value for value in given.values() if isinstance(value, Path)]
        origin = inherited(out, paths, shipped_recipes())
        settings = recipe_with(origin.parsed(), Path(origin.name), assignments)
    else:
        settings = load_recipe(recipe, assignments)
        origin = Origin(recipe, [], "{}")
    told = [*origin.assignments, *map(shown_assignment, assignments)]
    origin = Origin(origin.name, told, json.dumps(settings.whole()))
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    return Asked(step, settings, origin, out, given)


def _run(
    make_stage: Callable[..., Stage],
    step: str,
    given: dict[str, Any],
    stops: bool,
    *,
    out: options.Out,
    recipe: options.Recipe = None,
    assignments: options.Set = [],  # noqa: B006, typer copies it
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
    overwrite_changed: options.OverwriteChanged = False,
    dry_run: options.DryRun = False,
    stop_after: options.StopAfter = None,
    save_every: options.SaveEvery = None,
    engine: options.Engine = None,
) -> None:
    asked_for = asked(step, given, out=out, recipe=recipe, assignments=assignments, seed=seed, engine=engine)
    if not overwrite and not dry_run:
        try:
            standing = _on_main(asked_for.standing)
        except ArtifactError:
            if not overwrite_changed:
                raise
            overwrite = True
        else:
            if standing.manifest is not None:
                if _is_main():
                    print_complete(out, standing.gone)
                return
            overwrite = overwrite_changed
    stage = make_stage(asked_for.recipe, **given)
    from stages.artifacts.stage import execute

    requests = Requests(stop_after_s=stop_after, save_every=save_every) if stops else None
    origin = asked_for.origin.as_record()
    outcome = execute(stage, out, overwrite=overwrite, dry_run=dry_run, requests=requests, origin=origin)
    if dry_run:
        from stages.estimate import estimate

        needs = estimate(step, asked_for.recipe, given)
        outcome = replace(outcome, plan=outcome.plan | ({"estimate": needs} if needs else {}))
    if _is_main():
        print_outcome(outcome)


def _is_main() -> bool:
    """Whether this process speaks to the user; one that nobody launched beside others is not asked through torch."""
    if LAUNCHED not in os.environ:
        return True
    from stages.runtime.processes import is_main

    return is_main()


def _on_main(look: Callable[[], Standing]) -> Standing:
    """What the main process finds: the others do not hash the same files beside it."""
    if LAUNCHED not in os.environ:
        return look()
    from stages.runtime.processes import on_main

    return on_main(look)


def stage_command(step: str, *, generates: bool = False, trains: bool = False) -> Callable[..., Callable[..., None]]:
    """A command from a function that makes a stage of a recipe and inputs; `step` is its name in plans.

    Its options are the function's inputs and those that every stage has: the recipe, its changes, the output; and the
    recipe's engine where it generates, how often it saves where it trains, and a time limit where it does either: work
    that is cut into shards or steps can stop between them.
    """
    left_out = {"engine": not generates, "save_every": not trains, "stop_after": not (generates or trains)}
    names = {name for name, is_left_out in left_out.items() if is_left_out}
    return lambda make_stage: _command(make_stage, step, names)


def _command(make_stage: Callable[..., Stage], step: str, left_out: Collection[str]) -> Callable[..., None]:
    own = list(inspect.signature(make_stage).parameters.values())[1:]
    parameters = list(inspect.signature(_run).parameters.values())[4:]
    shared = [parameter for parameter in parameters if parameter.name not in left_out]
    hints = get_type_hints(make_stage, include_extras=True) | get_type_hints(_run, include_extras=True)
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in (*own, *shared)]

    def run(**values: Any) -> None:
        given = {parameter.name: values.pop(parameter.name) for parameter in own}
        _run(make_stage, step, given, "stop_after" not in left_out, **values)

    command: Any = run
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = make_stage.__doc__
    return command
