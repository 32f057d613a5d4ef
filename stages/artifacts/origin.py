"""The whole recipe that a step was made with, as its plan keeps it for the commands that follow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.artifacts.manifests import read_plan
from stages.artifacts.plan import ORIGIN
from stages.errors import RecipeError


@dataclass(frozen=True)
class Origin:
    """A whole recipe: the file that it came from, the `--set` assignments that changed it, and all its values then."""

    name: str
    """The recipe's file, or the name of a shipped recipe."""
    assignments: Sequence[str]
    values: str
    """Every value, as JSON text: a plan sorts the keys of its mappings, and an ablation needs its variants in order."""

    def __str__(self) -> str:
        return ", ".join([self.name, *self.assignments])

    def parsed(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.values)
        return values

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def read_origin(folder: Path) -> Origin | None:
    """The recipe of the step in `folder`, or in the folder around it; None where neither holds a step's plan."""
    for place in (folder, folder.parent):
        found = (read_plan(place) or {}).get(ORIGIN)
        if isinstance(found, dict) and found.keys() == {"name", "assignments", "values"}:
            return Origin(**found)
    return None


def inherited(out: Path, inputs: Iterable[Path], shipped: Sequence[str]) -> Origin:
    """The recipe of a command that names none: its output folder's, else the one that its inputs were made with.

    Raises:
        RecipeError: no folder tells, or they tell different ones.
    """
    own = read_origin(out)
    if own is not None:
        return own
    found = {path: origin for path in inputs if (origin := read_origin(path)) is not None}
    if not found:
        raise RecipeError(
            f"no --recipe, and no folder given here was made with one; give a file, or one of {', '.join(shipped)}"
        )
    first, *others = found.values()
    if any(other.values != first.values for other in others):
        told = "; ".join(f"{path}: {origin}" for path, origin in found.items())
        raise RecipeError(
            f"no --recipe, and the folders were made with different ones ({told}); give one with --recipe"
        )
    return first
