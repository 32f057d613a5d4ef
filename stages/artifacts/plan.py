"""What a step's output depends on, and how two such plans differ. Imports no machine learning."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.artifacts.bad_rows import BadRow
from stages.artifacts.fingerprint import fingerprint
from stages.artifacts.manifests import SCHEMA_VERSION

ORIGIN = "origin"
"""Key of the whole recipe in a plan: for later commands to read, not part of what the output depends on."""


@dataclass(frozen=True)
class Input:
    """A path and which files a step reads of it, where it is another step's output or a folder."""

    path: Path
    reads: tuple[str, ...]
    """Patterns of names inside the folder."""


def path_of(given: Path | Input) -> Path:
    return given.path if isinstance(given, Input) else given


def reads_of(given: Path | Input) -> tuple[str, ...]:
    """Patterns; none for a path of which everything is read."""
    return given.reads if isinstance(given, Input) else ()


@dataclass(frozen=True)
class Plan:
    """Everything that a step's output depends on."""

    step: str
    recipe: Mapping[str, Any]
    """The recipe's sections that the step reads."""
    seed: int
    inputs: Mapping[str, Path | Input]
    dropped: Sequence[BadRow] = ()
    """Rows of the inputs that are left out, which those and the recipe decide."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """The whole recipe and where it came from."""

    def record(self) -> dict[str, Any]:
        """The plan with the fingerprints of its inputs, as JSON; they are read when it is first asked for."""
        return dict(self._record)

    @cached_property
    def _record(self) -> dict[str, Any]:
        inputs = {
            name: {"path": str(path_of(given)), "sha256": fingerprint(path_of(given), reads_of(given))}
            for name, given in self.inputs.items()
        }
        record = {
            "schema_version": SCHEMA_VERSION,
            "step": self.step,
            "recipe": json.loads(json.dumps(self.recipe)),
            "seed": self.seed,
            "inputs": inputs,
        }
        record |= {"dropped": dict(Counter(row.reason for row in self.dropped))} if self.dropped else {}
        return record | ({ORIGIN: json.loads(json.dumps(self.origin))} if self.origin else {})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of what differs in two records, sorted; paths of inputs may differ, their contents may not."""
    return sorted(_differences({**old, ORIGIN: None}, {**new, ORIGIN: None}))


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {*old, *new} if not (place.startswith("inputs.") and name == "path")]
        return [
            found
            for name in names
            for found in _differences(old.get(name), new.get(name), f"{place}.{name}" if place else name)
        ]
    return [] if old == new else [place.removesuffix(".sha256")]
