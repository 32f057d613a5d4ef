"""Options that several commands share; used as `options.Name` in their signatures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:([0-9]+){unit})?" for unit in _UNITS))


def seconds(duration: str) -> float:
    """`3h30m` as seconds: days, hours, minutes and seconds, in this order, at least one of them.

    Raises:
        typer.BadParameter: it is something else, or no time at all.
    """
    found = _DURATION.fullmatch(duration)
    parts = [int(part or 0) * unit for part, unit in zip(found.groups(), _UNITS.values(), strict=True)] if found else []
    if not sum(parts):
        raise typer.BadParameter(f"{duration!r} is no duration; write it like 3h30m, 45m, 1d12h or 90s")
    return sum(parts)


Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Recipe file, or the name of a shipped recipe (df recipe list); without it the one that the folders named "
        "here were made with.",
    ),
]
Set = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one field of the recipe; repeatable.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of this step; the recipe's if not given.")]
Out = Annotated[Path, typer.Option("--out", help="Output folder of this step.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there already.")]
OverwriteChanged = Annotated[
    bool,
    typer.Option("--overwrite-changed", help="The same, but an output that is complete and up to date stays as it is."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check inputs and recipe, print the plan, stop.")]
StopAfter = Annotated[
    float | None,
    typer.Option(
        "--stop-after",
        metavar="3h30m",
        parser=seconds,
        help="Time limit: save, stop and exit with 75 at the first shard or step after it.",
    ),
]
SaveEvery = Annotated[
    int | None,
    typer.Option(
        "--save-every", min=1, help="Optimizer steps between checkpoints, 100 if not given; rl-repair: iterations, 1."
    ),
]
Engine = Annotated[
    Literal["auto", "transformers", "vllm"] | None, typer.Option(help="What generates: short for --set engine.name=.")
]
OnBadRow = Annotated[
    Literal["fail", "drop"],
    typer.Option(
        "--on-bad-row",
        help="fail: name the bad rows of the inputs and write nothing; drop: leave them out, counted by reason and "
        "listed in dropped.parquet.",
    ),
]
_problems = typer.Option("--problems", help="Problems, a Parquet file or a folder of shards.")
_policy = typer.Option("--policy", "--model", help="Policy: a checkpoint, or a train-policy output.")
_repair_model = typer.Option("--repair-model", help="Repair model: a checkpoint, or an sft-repair or rl-repair output.")
Episodes = Annotated[Path, typer.Option("--episodes", help="Output of df rl-repair.")]
Problems = Annotated[Path, _problems]
Policy = Annotated[Path, _policy]
RepairModel = Annotated[Path, _repair_model]
OptionalProblems = Annotated[Path | None, _problems]
OptionalPolicy = Annotated[Path | None, _policy]
OptionalRepairModel = Annotated[Path | None, _repair_model]
