"""What one run of a study makes, and what it has cost by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stages.artifacts.ledger import training_cost
from stages.artifacts.manifests import read_manifest
from stages.recipe import Recipe
from stages.study.steps import Steps


class Policy(NamedTuple):
    """A policy that a run trained, and what the run had spent when it was trained."""

    folder: Path
    round: int
    device_seconds: float
    """Device-seconds (eq. 29) of all steps but evaluations; a step that runs share counts in full for each of them."""
    rollouts: int
    """Responses sampled from the policy to train it on."""


@dataclass
class Spending:
    """Makes the steps of one run, and adds up what they cost."""

    steps: Steps
    recipe: Recipe
    assignments: Sequence[str]
    """Those that made the recipe of its file."""
    run: Path
    """Folder of the run, which shows its steps."""
    device_seconds: float = 0.0
    rollouts: int = 0

    def make(self, place: str, command: str, seed: int, /, **inputs: Path | str | None) -> Path:
        """Make or find a step, add its cost to the run's, and return its folder; the study chooses where that lies."""
        folder = self.steps.make(self.run / place, command, self.recipe, self.assignments, seed, **inputs)
        manifest = read_manifest(folder)
        if command != "evaluate":
            self.device_seconds += training_cost(manifest)
        if command == "rollout":
            self.rollouts += manifest["rows_out"]
        return folder

    def policy(self, folder: Path, number: int) -> Policy:
        """Record that the run has just trained the policy in `folder`, with what it has spent so far."""
        return Policy(folder, number, self.device_seconds, self.rollouts)
