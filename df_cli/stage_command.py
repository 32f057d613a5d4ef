"""What every stage's command has in common: its options, running the stage, telling what came of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, get_type_hints

from df_cli import options
from df_cli.report import print_outcome
from stages.interruption import Requests
from stages.recipe import load_recipe


class Stage(Protocol):
    """`stages.artifacts.stage.Stage`, which imports too much for `df --help`."""

    @property
    def inputs(self) -> Any: ...

    def plan(self) -> Any: ...

    def run(self, step: Any) -> None: ...


def _run(
    make_stage: Callable[..., Stage],
    inputs: dict[str, Any],
    stops: bool,
    *,
    out: options.Out,
    recipe: options.Recipe = "digits",
    assignments: options.Set = [],  # noqa: B006, typer copies it
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    stop_after: options.StopAfter = None,
    save_every: options.SaveEvery = None,
    engine: options.Engine = None,
) -> None:
    settings = load_recipe(recipe, [*assignments, *([] if engine is None else [f"engine.name={engine}"])])
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    stage = make_stage(settings, **inputs)
    from stages.artifacts.stage import execute
    from stages.processes import is_main

    requests = Requests(stop_after_s=stop_after, save_every=save_every) if stops else None
    outcome = execute(stage, Path(out), overwrite=overwrite, dry_run=dry_run, requests=requests)
    if is_main():
        print_outcome(outcome)


def stage_command(*, generates: bool = False, trains: bool = False) -> Callable[..., Callable[..., None]]:
    """A command from a function that makes a stage of a recipe and inputs.

    Its options are the function's inputs and those that every stage has: the recipe, its changes, the output; and the
    recipe's engine where it generates, how often it saves where it trains, and a time limit where it does either: work
    that is cut into shards or steps can stop between them.
    """
    left_out = {"engine": not generates, "save_every": not trains, "stop_after": not (generates or trains)}
    return lambda make_stage: _command(make_stage, {name for name, is_left_out in left_out.items() if is_left_out})


def _command(make_stage: Callable[..., Stage], left_out: Collection[str]) -> Callable[..., None]:
    own = list(inspect.signature(make_stage).parameters.values())[1:]
    parameters = list(inspect.signature(_run).parameters.values())[3:]
    shared = [parameter for parameter in parameters if parameter.name not in left_out]
    hints = get_type_hints(make_stage, include_extras=True) | get_type_hints(_run, include_extras=True)

    def command(**values: Any) -> None:
        inputs = {parameter.name: values.pop(parameter.name) for parameter in own}
        _run(make_stage, inputs, "stop_after" not in left_out, **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in (*own, *shared)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = make_stage.__doc__
    return command
