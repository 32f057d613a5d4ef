"""Commands that are interrupted and given again, and what they wrote without what tells of the machine and the time."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from timeless import timeless

from doomed import MOMENTS, Point, Trace, run
from forked import server
from stages.artifacts.lock import LOCK
from stages.artifacts.manifests import MANIFEST
from stages.artifacts.step import CHECKPOINTS, PENDING, PROGRESS


@dataclass(frozen=True)
class Progress:
    """What a stopped run had noted as finished when the next one found it."""

    shards: Collection[str] = ()
    checkpoint: str = ""
    is_complete: bool = False

    @classmethod
    def of(cls, out: Path) -> Progress:
        noted = json.loads((out / PROGRESS).read_text()) if (out / PROGRESS).is_file() else {}
        return cls(noted.get("files", ()), noted.get("checkpoint") or "", (out / MANIFEST).is_file())

    def holds(self, name: str) -> bool:
        """Whether a shard is finished, or a checkpoint no newer than the last."""
        return name in self.shards or (Path(name).parent.name == CHECKPOINTS and Path(name).name <= self.checkpoint)


@dataclass(frozen=True)
class Command:
    """One stage's command on inputs that are there, but for its output folder."""

    arguments: list[str]
    reward_waits: bool = False
    """Whether `rollout` generates a shard while the reward scores the one before."""

    def start(
        self, out: Path, death: Point | None = None, number: int = signal.SIGKILL
    ) -> multiprocessing.process.BaseProcess:
        """A process that does it, forked where everything is imported; its records and output lie beside `out`."""
        process = self.process(out, death, number)
        process.start()
        return process

    def process(
        self, out: Path, death: Point | None = None, number: int = signal.SIGKILL
    ) -> multiprocessing.process.BaseProcess:
        """The same, not yet started."""
        return server().Process(
            target=run, args=([*self.arguments, "--out", str(out)], out, death, number, self.reward_waits)
        )

    def with_options(self, *options: str) -> Command:
        return replace(self, arguments=[*self.arguments, *options])

    def finish(self, out: Path) -> Trace:
        """Do it to its end."""
        process = self.start(out)
        process.join()
        assert process.exitcode == 0, out.with_suffix(".output").read_text()
        return Trace.of(out)


@dataclass(frozen=True)
class Reference:
    """A stage as nobody interrupted it."""

    command: Command
    out: Path
    trace: Trace
    seconds: float

    @property
    def record(self) -> list[str]:
        return self.trace.record

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
        progress = Progress.of(out)
        trace = self.command.finish(out)
        again = {f"finish {name}{PENDING}" for name in progress.shards} & set(trace.record)
        assert not again, place
        saved = [line.rpartition("/")[2] for line in trace.record if line.startswith(f"os.mkdir {CHECKPOINTS}/0")]
        assert all(name > progress.checkpoint for name in saved), place
        done_again = Counter(piece for _, piece in trace.work) - self.left(progress)
        assert not done_again, place
        found, expected = content(out), content(self.out)
        assert found.keys() == expected.keys(), place
        assert [name for name in expected if found[name] != expected[name]] == [], place

    def left(self, progress: Progress) -> Counter[str]:
        """The costly work that a run which goes on from there has before it.

        A piece belongs to what is noted next: the reference works on one shard after the other, none of them ahead.
        """
        if progress.is_complete:
            return Counter()
        notes = list(self.trace.notes())
        return Counter(
            piece
            for before, piece in self.trace.work
            if not any(map(progress.holds, next((names for entry, names in notes if entry >= before), [])))
        )


def content(out: Path) -> dict[str, object]:
    """What a step wrote, but for what tells of the machine and the time, and the lock of one that was killed."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name != LOCK]
    return {str(file.relative_to(out)): timeless(file) for file in files}
