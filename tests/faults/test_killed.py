"""Each stage killed at every kind of moment, and started again: the output is that of a run that nobody killed.

`make test-faults` kills each stage at every rename, two or three times each, at one in four other changes, and at
instants spread evenly over its run; the slow tests do a sample, the ordinary ones one moment of a stage that trains
and of one that generates.
"""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from doomed import Point, Trace
from interrupted import Command, Progress, Reference

STAGES = ("repair-set sheet", "sft-repair", "rl-repair", "rollout", "build-masks", "train-policy", "evaluate")
INSTANTS = 6
SAMPLED_POINTS = 4


@pytest.mark.parametrize("stage", ["sft-repair", "rollout"])
def test_a_stage_that_was_killed_once_goes_on(stage: str, references: dict[str, Reference], tmp_path: Path) -> None:
    reference = references[stage]
    reference.check_after_death_at(random.Random(stage).choice(reference.points()), tmp_path / "out")


@pytest.mark.slow
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


@pytest.mark.timeout(600)
def test_a_rollout_that_was_killed_while_a_shard_was_generated_ahead_goes_on(
    references: dict[str, Reference], tmp_path: Path
) -> None:
    reference, out = references["rollout"], tmp_path / "out"
    ahead = replace(reference, command=replace(reference.command, reward_waits=True))
    ahead.check_after_death_at(Point(reference.record.index("rename rollouts-00000.parquet"), "after"), out)

    work = Trace.of(out).work
    at_first = [piece for before, piece in work if before == work[0][0]]
    assert sum(piece.startswith("TransformersEngine.generate") for piece in at_first) == 2


def test_costly_work_belongs_to_the_shard_or_checkpoint_that_is_noted_next() -> None:
    shard, checkpoint = ["finish a-00000.parquet.pending", "finish progress.json"], ["os.mkdir checkpoints/000000"]
    record = [*shard, "rename a-00000.parquet", *checkpoint, "finish progress.json", "finish manifest.json"]
    work = [(0, "drafts"), (0, "drafts"), (3, "repairs"), (3, "drafts"), (5, "held-out repairs")]
    reference = Reference(Command([]), Path(), Trace(record, work), 0)

    assert reference.left(Progress()) == Counter({"drafts": 3, "repairs": 1, "held-out repairs": 1})
    with_shard = Progress(shards=["a-00000.parquet"])
    assert reference.left(with_shard) == Counter(["repairs", "drafts", "held-out repairs"])
    assert reference.left(replace(with_shard, checkpoint="000000")) == Counter(["held-out repairs"])
    assert reference.left(Progress(is_complete=True)) == Counter()
