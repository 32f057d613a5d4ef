"""What follows what in one run: the repair model, then rounds of rollouts, masks and training, and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from stages.artifacts.ledger import training_cost
from stages.artifacts.manifests import read_manifest
from stages.recipe import Recipe
from stages.study.steps import Steps

RepairModel = Literal["rl", "sft", "rl_alone", "none"]
Start = Literal["base", "sft"]


class Inputs(NamedTuple):
    """What every run of a study has in common."""

    train: Path
    repair_set: Path
    base: Path


class Policy(NamedTuple):
    """A policy that a run came to, and what it had cost by then."""

    folder: Path
    round: int
    device_seconds: float
    """Of all steps but evaluations, those included that another run has paid for (eq. 29)."""
    rollouts: int
    """Responses sampled from the policy to train it on."""


@dataclass
class Chain:
    """One run under way."""

    steps: Steps
    recipe: Recipe
    assignments: Sequence[str]
    """Those that made the recipe of its file."""
    inputs: Inputs
    seed: int
    rounds: list[Path] = field(default_factory=list)
    """Folders of its rollouts, groups and policies."""
    _device_seconds: float = 0.0
    _rollouts: int = 0

    def repair_model(self, kind: RepairModel) -> Path | None:
        """The output that trained it; None for `none`. `rl_alone` starts from the base and sees no repair set."""
        of = self.inputs
        if kind == "none":
            return None
        if kind == "rl_alone":
            return self._step("rl-repair", self.seed, problems=of.train, policy=of.base, repair_model=of.base)
        sft = self._step("sft-repair", self.seed, repair_set=of.repair_set, model=of.base)
        if kind == "sft":
            return sft
        inputs = {"problems": of.train, "policy": of.base, "repair_model": sft, "repair_set": of.repair_set}
        return self._step("rl-repair", self.seed, **inputs)

    def start(self, kind: Start) -> Policy:
        """The base, or the base trained on the repairs of the repair set as answers."""
        of = self.inputs
        if kind == "base":
            return self._policy(of.base, 0)
        sft = self._step("sft-repair", self.seed, repair_set=of.repair_set, model=of.base, prompt="policy")
        return self._policy(sft, 0)

    def round(self, policy: Policy, repair_model: Path | None) -> Policy:
        """Rollouts of the policy, their masks, training on them: the next policy."""
        number = policy.round + 1
        seed, problems = self.seed * 1000 + number, self.inputs.train
        rollouts = self._step("rollout", seed, problems=problems, policy=policy.folder)
        self._rollouts += read_manifest(rollouts)["rows_out"]
        inputs = {"rollouts": rollouts, "problems": problems, "repair_model": repair_model, "policy": policy.folder}
        groups = self._step("build-masks", seed, **inputs)
        trained = self._step("train-policy", seed, groups=groups, problems=problems, policy=policy.folder)
        self.rounds += [rollouts, groups, trained]
        return self._policy(trained, number)

    def scores(self, policy: Path, problems: Path) -> Path:
        """How good a policy is."""
        return self.steps.make("evaluate", self.recipe, self.assignments, self.seed, problems=problems, model=policy)

    def _step(self, name: str, seed: int, **inputs: Path | str | None) -> Path:
        folder = self.steps.make(name, self.recipe, self.assignments, seed, **inputs)
        self._device_seconds += training_cost(read_manifest(folder))
        return folder

    def _policy(self, folder: Path, number: int) -> Policy:
        return Policy(folder, number, self._device_seconds, self._rollouts)
