"""Each stage killed at every kind of moment, and started again: the output is that of a run that nobody killed.

`make test-faults` kills each stage at every rename, two or three times each, at one in four other changes, and at
instants spread evenly over its run; the ordinary tests do a sample.
"""

import random
from pathlib import Path

import pytest

from interrupted import Reference

STAGES = ("sft-repair", "rl-repair", "rollout", "build-masks", "train-policy")
INSTANTS = 6
SAMPLED_POINTS = 4


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
