"""What the notes in a step's folder say: its plan, its manifest, and the files that the manifest vouches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.artifacts.fingerprint import MANIFEST
from stages.artifacts.integrity import check_files
from stages.artifacts.store import check_parquet
from stages.errors import ArtifactError

SCHEMA_VERSION = 1
PLAN = "plan.json"
MODEL = "model"
"""Folder of the checkpoint inside a training step's output."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete step.

    Raises:
        ArtifactError: the folder has none, so the step is not complete, or one of another version or of no step.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest is None:
        raise ArtifactError(f"{folder}: no {MANIFEST}, so this step is not complete; run its command again")
    version = manifest.get("schema_version")
    if not isinstance(version, int) or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{folder / MANIFEST}: not a step's; run the command that made it again with --overwrite")
    if version != SCHEMA_VERSION:
        update = "update df, or " if version > SCHEMA_VERSION else ""
        raise ArtifactError(
            f"{folder}: schema version {version}, this is {SCHEMA_VERSION}; {update}run its command again with "
            "--overwrite"
        )
    return manifest


def checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete step, whose files are what it says."""
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"])
    return manifest


def check_input(path: Path) -> None:
    """What is read of a step, its folder or something in that, has to be what its manifest says; other Parquet whole.

    Raises:
        ArtifactError: a step that is not complete, or a file of one that is missing or changed.
        DataError: a Parquet file that cannot be read.
    """
    if read_plan(path) is not None:
        checked_manifest(path)
    elif (path.parent / MANIFEST).is_file() and read_plan(path.parent) is not None:
        check_files(path.parent, read_manifest(path.parent)["files"], path.name)
    else:
        for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
            if file.suffix == ".parquet" and file.is_file():
                check_parquet(file)


def recorded_vocabulary(folder: Path) -> dict[str, Any]:
    """`vocabulary` in a plan: whose token ids a step's output holds; nothing where no manifest tells."""
    recipe = read_manifest(folder)["recipe"] if (folder / MANIFEST).is_file() else {}
    return {name: recipe[name] for name in ("vocabulary",) if name in recipe}


def model_folder(path: Path) -> Path:
    """The checkpoint of a training step's output, or the path itself where it is a checkpoint or a hub name.

    Raises:
        ArtifactError: a step that is not complete.
    """
    if read_plan(path) is not None:
        read_manifest(path)
        return path / MODEL
    return path


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of a step's folder; None where there is none, or somebody else's file of that name."""
    plan = read_json(folder / PLAN)
    return plan if plan is not None and {"schema_version", "step", "inputs"} <= plan.keys() else None


def read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        remedy = f"if df made {path.parent}, delete it and run its command again"
        raise ArtifactError(f"{path}: not JSON ({error}); {remedy}") from error
    return value if isinstance(value, dict) else {}
