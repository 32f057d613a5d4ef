"""Whether a step's output is there and made from what its command is given, told in a moment. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.integrity import check_undamaged
from stages.artifacts.manifests import MANIFEST, PROGRESS, read_json, read_manifest, read_plan
from stages.artifacts.plan import Plan, differences
from stages.errors import ArtifactError

AUTO = "auto"
DERIVED = {"vocabulary", "policy"}
"""What a plan's recipe says beyond the recipe, of a model that is among the inputs."""
WEIGHTS = (".safetensors",)


@dataclass(frozen=True)
class Standing:
    """How a step's output folder stands to a plan."""

    manifest: Mapping[str, Any] | None = None
    """The output's manifest, if the output is complete and up to date; else None."""
    gone: Sequence[str] = ()
    """Model files of that output that somebody has deleted since."""
    changed: Sequence[str] = ()
    """Dotted names of the inputs and recipe fields that differ from those that the present output was made with.

    Where there are any, running the step would overwrite that output. Empty where nothing would be lost.
    """


def standing(out: Path, declared: Plan, on_bad_row: OnBadRow = "fail") -> Standing:
    """Compare the output folder `out` with `declared`, the plan that the command line makes; write nothing.

    `declared` holds what the recipe and the inputs' notes tell. It lacks what only a stage finds out (the tokenizer,
    bad rows). That follows from what it holds, so those entries of the older plan are not compared.

    Raises:
        ArtifactError: a file of the output differs from its manifest.
    """
    existing = read_plan(out)
    if existing is None:
        return Standing()
    try:
        record = declared.record()
    except ArtifactError:  # an input is not complete: it is about to be made
        return Standing()
    changed = differences(_comparable(existing, record), record)
    if changed:
        return Standing(changed=changed if holds_work(out) else ())
    complete = (out / MANIFEST).is_file() and not (out / PROGRESS).is_file()
    if not complete or (existing.get("dropped") and on_bad_row == "fail"):
        return Standing()
    return _checked(out)


def holds_work(out: Path) -> bool:
    """Whether a step's folder holds anything that would be lost: it is complete, or a checkpoint or a row is noted."""
    if (out / MANIFEST).is_file():
        return True
    try:
        progress = read_json(out / PROGRESS)
    except ArtifactError:
        return True
    if progress is None:
        return False
    if progress.get("settled") or progress.get("checkpoint") is not None:
        return True
    return any(_may_have_rows(out / name) for name in progress.get("files", {}))


def _may_have_rows(shard: Path) -> bool:
    try:
        return bool(pq.read_metadata(shard).num_rows)
    except (OSError, pa.ArrowException):
        return True


def _comparable(existing: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The earlier plan without what is decided by the rest of it; its engine is `auto` where that is asked for."""
    recipe = {name: value for name, value in existing["recipe"].items() if name not in DERIVED}
    if record["recipe"].get("engine", {}).get("name") == AUTO and "engine" in recipe:
        recipe["engine"] = {**recipe["engine"], "name": AUTO}
    return {**existing, "recipe": recipe, "dropped": None}


def _checked(out: Path) -> Standing:
    """Every file is as the manifest says; of models, which their readers check, what is not there is told."""
    manifest = read_manifest(out)
    files, models = manifest["files"], model_files(manifest)
    check_undamaged(out, {name: entry for name, entry in files.items() if name not in models})
    return Standing(manifest, [name for name in models if not (out / name).is_file()])


def model_files(manifest: Mapping[str, Any]) -> list[str]:
    """Of a step's files, those of its models and of their optimizers; without them it is complete all the same."""
    return [name for name in manifest["files"] if "/" in name or name.endswith(WEIGHTS)]
