"""Each stage killed at every kind of moment, and started again: the output is that of a run that nobody killed.

`make test-faults` kills each stage at every rename, three times each, and at instants that are evenly spread over its
run; the ordinary tests do a sample of both.
"""

import json
import multiprocessing
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from doomed import MOMENTS, Point, run
from stages.artifacts.fingerprint import MANIFEST
from stages.artifacts.step import CHECKPOINTS, PENDING, PROGRESS
from stages.training.trainer import MACHINE_METRICS

STAGES = ("sft-repair", "rl-repair", "rollout", "build-masks", "train-policy")
INSTANTS = 6
SAMPLED_POINTS = 4
SETTINGS = [
    "sft.epochs=2",
    "sft.batch_size=8",
    "repair_rl.problems=12",
    "repair_rl.iterations=3",
    "repair_rl.errors_per_iteration=4",
    "repair_rl.errors_per_step=2",
    "repair_rl.repairs_per_error=2",
    "repair_rl.c1_tries=2",
    "rollout.samples_per_problem=4",
    "rollout.rows_per_shard=12",
    "rollout.max_new_tokens=48",
    "masks.candidates=2",
    "train.problems_per_step=2",
    "train.epochs=2",
]


@dataclass(frozen=True)
class Command:
    """One stage's command on inputs that are there, but for its output folder."""

    arguments: list[str]

    def start(self, out: Path, death: Point | None = None) -> multiprocessing.process.BaseProcess:
        """A process that does it, forked where everything is imported; its record and output lie beside `out`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["doomed"])
        arguments = [*self.arguments, "--out", str(out)]
        files = (out.with_suffix(".record"), death, out.with_suffix(".output"))
        process = context.Process(target=run, args=(arguments, out, *files))
        process.start()
        return process

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
        """Every moment of the run at which it can be killed by its record."""
        return [
            Point(entry, moment)
            for entry, line in enumerate(self.record)
            for moment in (MOMENTS if line.startswith("os.rename ") else ("before",))
        ]

    def check_after_death_at(self, point: Point, out: Path) -> None:
        """Killed there and started again, it writes the same, and nothing again that was finished."""
        process = self.command.start(out, point)
        process.join()
        assert process.exitcode == -signal.SIGKILL, (point, out.with_suffix(".output").read_text())
        self._check_resumed(out, f"{point.moment} {self.record[point.entry]}")

    def check_after_death_at_instant(self, seconds: float, out: Path) -> None:
        """The same of an instant after its start, wherever that finds it."""
        process = self.command.start(out)
        process.join(seconds)
        process.kill()
        process.join()
        self._check_resumed(out, f"after {seconds:.2f} s")

    def _check_resumed(self, out: Path, place: str) -> None:
        progress = json.loads((out / PROGRESS).read_text()) if (out / PROGRESS).is_file() else {}
        record = self.command.finish(out)
        again = {f"os.rename {name}{PENDING}" for name in progress.get("files", {})} & set(record)
        assert not again, place
        saved = [line.rpartition("/")[2] for line in record if line.startswith(f"os.mkdir {CHECKPOINTS}/0")]
        assert all(name > (progress.get("checkpoint") or "") for name in saved), place
        found, expected = content(out), content(self.out)
        assert found.keys() == expected.keys(), place
        assert [name for name in expected if found[name] != expected[name]] == [], place


def content(out: Path) -> dict[str, object]:
    """What a step wrote, but for what tells of the machine and the time."""
    return {str(file.relative_to(out)): timeless(file) for file in sorted(out.rglob("*")) if file.is_file()}


def timeless(file: Path) -> object:
    if file.name == MANIFEST:
        manifest = json.loads(file.read_text())
        del manifest["device_seconds"]
        manifest["files"].pop("metrics.parquet", None)
        return manifest
    if file.name == "metrics.parquet":
        return [repr(row) for row in pq.read_table(file).to_pylist() if row["metric"] not in MACHINE_METRICS]
    if file.name == "metrics.jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [repr({k: v for k, v in line.items() if k not in MACHINE_METRICS}) for line in lines]
    return file.read_bytes()


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> dict[str, Reference]:
    """The five stages, each on what the ones before it wrote."""
    folder = tmp_path_factory.mktemp("faults")
    problems, pairs = folder / "problems.parquet", folder / "repair_set.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, 12), problems)
    pq.write_table(pq.read_table(digits / "repair_set.parquet").slice(0, 30), pairs)
    base, recipe = digits / "base", [word for setting in SETTINGS for word in ("--set", setting)]
    out = {stage: folder / stage for stage in STAGES}
    inputs = {
        "sft-repair": {"repair-set": pairs, "model": base, "save-every": 2},
        "rl-repair": {"problems": problems, "policy": base, "repair-model": out["sft-repair"], "repair-set": pairs},
        "rollout": {"problems": problems, "policy": base},
        "build-masks": {
            "rollouts": out["rollout"], "problems": problems, "repair-model": out["rl-repair"], "policy": base,
        },
        "train-policy": {"groups": out["build-masks"], "problems": problems, "policy": base, "save-every": 2},
    }  # fmt: skip
    done = {}
    for stage, options in inputs.items():
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command, started = Command([stage, *words, *recipe]), time.monotonic()
        record = command.finish(out[stage])
        done[stage] = Reference(command, out[stage], record, time.monotonic() - started)
    return done


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_killed_goes_on(stage: str, references: dict[str, Reference], tmp_path: Path) -> None:
    reference = references[stage]
    points = random.Random(stage).sample(reference.points(), SAMPLED_POINTS)
    for number, point in enumerate(points):
        reference.check_after_death_at(point, tmp_path / f"point-{number}")
    reference.check_after_death_at_instant(0.6 * reference.seconds, tmp_path / "instant")


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_killed_anywhere_goes_on(stage: str, references: dict[str, Reference], tmp_path: Path) -> None:
    reference = references[stage]
    assert len(reference.points()) >= 20
    for number, point in enumerate(reference.points()):
        reference.check_after_death_at(point, tmp_path / f"point-{number}")
    for number in range(INSTANTS):
        seconds = reference.seconds * (number + 1) / (INSTANTS + 1)
        reference.check_after_death_at_instant(seconds, tmp_path / f"instant-{number}")
