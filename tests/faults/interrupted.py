"""Commands that are interrupted and given again, and what they wrote without what tells of the machine and the time."""

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq

from doomed import MOMENTS, Point, run
from stages.artifacts.lock import LOCK
from stages.artifacts.notes import MANIFEST
from stages.artifacts.step import CHECKPOINTS, PENDING, PROGRESS
from stages.training.trainer import MACHINE_METRICS


@cache
def _server() -> multiprocessing.context.ForkServerContext:
    """What commands are forked from; it looks for modules where its environment says, not where this process does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["doomed"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


@dataclass(frozen=True)
class Command:
    """One stage's command on inputs that are there, but for its output folder."""

    arguments: list[str]

    def start(self, out: Path, death: Point | None = None) -> multiprocessing.process.BaseProcess:
        """A process that does it, forked where everything is imported; its record and output lie beside `out`."""
        arguments = [*self.arguments, "--out", str(out)]
        files = (out.with_suffix(".record"), death, out.with_suffix(".output"))
        process = _server().Process(target=run, args=(arguments, out, *files))
        process.start()
        return process

    def with_options(self, *options: str) -> "Command":
        return Command([*self.arguments, *options])

    def finish(self, out: Path) -> list[str]:
        """Do it to its end; what it did to the folder."""
        process = self.start(out)
        process.join()
        assert process.exitcode == 0, out.with_suffix(".output").read_text()
        return out.with_suffix(".record").read_text().splitlines()


@dataclass(frozen=True)
class Reference:
    """A stage as nobody interrupted it."""

    command: Command
    out: Path
    record: list[str]
    seconds: float

    def points(self) -> list[Point]:
        """Moments of the run at which it can be killed by its record: all of each rename, and one in four others."""
        events = [line.partition(" ")[0] for line in self.record]
        renames = [Point(i, moment) for i, event in enumerate(events) for moment in MOMENTS.get(event, ())]
        others = [Point(i, "before") for i, event in enumerate(events) if event not in MOMENTS]
        return renames + others[::4]

    def check_after_death_at(self, point: Point, out: Path) -> None:
        """Killed there and started again, it writes the same, and nothing again that was finished."""
        process = self.command.start(out, point)
        process.join()
        assert process.exitcode == -signal.SIGKILL, (point, out.with_suffix(".output").read_text())
        self.check_resumed(out, f"{point.moment} {self.record[point.entry]}")

    def check_after_death_at_instant(self, seconds: float, out: Path) -> None:
        """The same of an instant after its start, wherever that finds it."""
        process = self.command.start(out)
        process.join(seconds)
        process.kill()
        process.join()
        self.check_resumed(out, f"after {seconds:.2f} s")

    def check_resumed(self, out: Path, place: str) -> None:
        progress = json.loads((out / PROGRESS).read_text()) if (out / PROGRESS).is_file() else {}
        record = self.command.finish(out)
        again = {f"finish {name}{PENDING}" for name in progress.get("files", {})} & set(record)
        assert not again, place
        saved = [line.rpartition("/")[2] for line in record if line.startswith(f"os.mkdir {CHECKPOINTS}/0")]
        assert all(name > (progress.get("checkpoint") or "") for name in saved), place
        found, expected = content(out), content(self.out)
        assert found.keys() == expected.keys(), place
        assert [name for name in expected if found[name] != expected[name]] == [], place


def content(out: Path) -> dict[str, object]:
    """What a step wrote, but for what tells of the machine and the time, and the lock of one that was killed."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name != LOCK]
    return {str(file.relative_to(out)): timeless(file) for file in files}


def timeless(file: Path) -> object:
    if file.name == MANIFEST:
        manifest = json.loads(file.read_text())
        del manifest["device_seconds"], manifest["checksum"]  # the checksum is over both
        manifest["files"].pop("metrics.parquet", None)
        return manifest
    if file.name == "metrics.parquet":
        return [repr(row) for row in pq.read_table(file).to_pylist() if row["metric"] not in MACHINE_METRICS]
    if file.name == "metrics.jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [repr({k: v for k, v in line.items() if k not in MACHINE_METRICS}) for line in lines]
    return file.read_bytes()
