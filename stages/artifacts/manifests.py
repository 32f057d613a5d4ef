"""The notes in a step's folder, its plan and its manifest, and what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.errors import ArtifactError

SCHEMA_VERSION = 2
PLAN = "plan.json"
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
"""What an unfinished step has done."""
MODEL = "model"
"""Folder of the checkpoint inside a training step's output."""
OPTIMIZER_STATE = "optimizer.safetensors"
"""File beside it: AdamW's state, and the float32 weights that the checkpoint has rounded."""
MAKER = ("vocabulary", "policy")
"""Keys in a plan: `vocabulary` tells what token ids mean, `policy` which weights and prompts gave log-probs."""
MAKER_SETTINGS = {"rollout": ("temperature",), "prompt": ("instruction",), "model": ("min_pixels", "max_pixels")}
"""Fields of the recipe that log-probs depend on."""
_CHECKSUM = "checksum"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete step.

    Raises:
        ArtifactError: the folder has none, so the step is not complete, or one of another version or of no step.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        raise ArtifactError(f"{folder}: no {MANIFEST}, so this step is not complete; run its command again")
    version, again = manifest.get("schema_version"), "run the command that made it again with --overwrite"
    if type(version) is not int:
        raise ArtifactError(f"{folder / MANIFEST}: not a step's; {again}")
    if version != SCHEMA_VERSION:
        update = "update df, or " if version > SCHEMA_VERSION else ""
        raise ArtifactError(
            f"{folder}: schema version {version}, this is {SCHEMA_VERSION}; {update}run its command again with "
            "--overwrite"
        )
    if not is_intact(manifest):
        raise ArtifactError(f"{folder / MANIFEST}: changed since it was written; {again}")
    return manifest


def recorded_maker(folder: Path) -> dict[str, Any]:
    """The part of a step's recipe that decides what its token ids and log-probs mean: `MAKER` and `MAKER_SETTINGS`.

    Empty where the folder has no manifest.
    """
    recipe = read_manifest(folder)["recipe"] if is_step(folder) else {}
    found: dict[str, Any] = {name: recipe[name] for name in MAKER if name in recipe}
    for section, names in MAKER_SETTINGS.items():
        settings = {name: recipe[section][name] for name in names if name in recipe.get(section, {})}
        found |= {section: settings} if settings else {}
    return found


def model_folder(path: Path) -> Path:
    """The checkpoint of a training step's output, or the path itself where it is a checkpoint or a hub name.

    Raises:
        ArtifactError: a step that is not complete.
    """
    if is_step(path):
        read_manifest(path)
        return path / MODEL
    return path


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of a step's folder; None where there is none, or somebody else's file of that name."""
    plan = read_json(folder / PLAN)
    return plan if plan is not None and {"schema_version", "step", "inputs"} <= plan.keys() else None


def is_step(folder: Path) -> bool:
    """Whether a step has written there, as far as its notes are still there."""
    manifest = read_json(folder / MANIFEST) or {}
    return read_plan(folder) is not None or {"schema_version", "step", "files"} <= manifest.keys()


def sealed(note: Mapping[str, Any]) -> dict[str, Any]:
    """The note with a checksum over the rest of it."""
    return {**note, _CHECKSUM: _checksum(note)}


def is_intact(note: Mapping[str, Any]) -> bool:
    """Whether a note is what `sealed` gave."""
    return note.get(_CHECKSUM) == _checksum(note)


def _checksum(note: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in note.items() if name != _CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file of JSON says; None where there is none, nothing where it is no mapping.

    Raises:
        ArtifactError: not JSON.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        remedy = f"if df made {path.parent}, delete it and run its command again"
        raise ArtifactError(f"{path}: not JSON ({error}); {remedy}") from error
    return value if isinstance(value, dict) else {}
