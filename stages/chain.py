"""What follows what in a run, where each step lies in its folder, and with which seed. Imports no torch.

Whoever makes the steps (`make all`, the study, the loop) or reads them (the summary) takes them from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

SFT, RL = "1-sft-repair", "2-rl-repair"
SFT_POLICY = "1-sft-policy"
ROLLOUT, MASKS, TRAIN = "rollout", "build-masks", "train-policy"
BASE = "evaluate-base"
VALIDATION = "validation"
"""Begins the names of a loop's evaluations."""
RepairModel = Literal["rl", "sft", "rl_alone", "none"]
Start = Literal["base", "sft"]


class Make(Protocol):
    """Makes a step, or finds it made."""

    def __call__(self, place: str, command: str, seed: int, /, **inputs: Path | str | None) -> Path:
        """The folder of the step that `df command` makes of these inputs; one that is None it does without.

        `place` is the step's in the folder of a run that keeps all of its steps.
        """
        ...


class Round(NamedTuple):
    """Folders of one round's steps."""

    rollouts: Path
    groups: Path
    policy: Path


@dataclass(frozen=True)
class Chain:
    """One run: a repair model, rounds of a policy, evaluations."""

    make: Make
    problems: Path
    base: Path
    """The policy that it starts from."""
    repair_set: Path
    seed: int

    def start(self, kind: Start) -> Path:
        """The base, or the base trained on the repairs of the repair set as answers."""
        if kind == "base":
            return self.base
        inputs = {"repair_set": self.repair_set, "model": self.base}
        return self.make(SFT_POLICY, "sft-repair", self.seed, **inputs, prompt="policy")

    def repair_model(self, kind: RepairModel, policy: Path) -> Path | None:
        """The step that trained it from the policy that the rounds start from; None for `none`.

        `rl_alone` sees no repair set.
        """
        if kind == "none":
            return None
        inputs = {"problems": self.problems, "policy": policy}
        if kind == "rl_alone":
            return self.make(RL, "rl-repair", self.seed, **inputs, repair_model=policy)
        sft = self.make(SFT, "sft-repair", self.seed, repair_set=self.repair_set, model=policy)
        if kind == "sft":
            return sft
        return self.make(RL, "rl-repair", self.seed, **inputs, repair_model=sft, repair_set=self.repair_set)

    def round(self, number: int, policy: Path, repair_model: Path | None, start: Path) -> Round:
        """Rollouts of the policy, their masks, training on them; rounds count from 1, from the policy `start`."""
        seed, problems = self.round_seed(number), self.problems
        place = round_folder(Path(), number)
        rollouts = self.make(str(place / ROLLOUT), "rollout", seed, problems=problems, policy=policy)
        inputs = {"rollouts": rollouts, "problems": problems, "repair_model": repair_model, "policy": policy}
        groups = self.make(str(place / MASKS), "build-masks", seed, **inputs)
        inputs = {"groups": groups, "problems": problems, "policy": policy, "reference": start}
        trained = self.make(str(place / TRAIN), "train-policy", seed, **inputs)
        return Round(rollouts, groups, trained)

    def round_seed(self, number: int) -> int:
        """Of a round's steps; none is another run's, as long as a run has fewer than 1,000."""
        return self.seed * 1000 + number

    def rounds(self, count: int, policy: Path, repair_model: Path | None) -> Iterator[Round]:
        """So many, each from the policy that the one before came to."""
        start = policy
        for number in range(1, count + 1):
            made = self.round(number, policy, repair_model, start)
            yield made
            policy = made.policy

    def scores(self, place: str, policy: Path, problems: Path) -> Path:
        """How good a policy is."""
        return self.make(place, "evaluate", self.seed, problems=problems, model=policy)


def round_folder(run: Path, number: int) -> Path:
    """Rounds count from 1."""
    return run / f"round-{number}"


def final_scores(run: Path, rounds: int) -> Path:
    return run / f"evaluate-round-{rounds}"
