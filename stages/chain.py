"""What follows what in a run, where each step lies in its folder, and with which seed. Imports no torch.

Whoever makes the steps (`make all`, the study, the loop) or reads them (the summary) takes them from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

SFT, RL = "1-sft-repair", "2-rl-repair"
SFT_POLICY = "1-sft-policy"
ROLLOUT, MASKS, TRAIN = "rollout", "build-masks", "train-policy"
RL_AGAIN = "rl-repair"
"""The step of a loop that trains the repair model again, in the folder of the round that it follows."""
BASE = "evaluate-base"
VALIDATION = "validation"
"""Begins the names of a loop's evaluations."""
RepairModel = Literal["rl", "sft", "rl_alone", "untrained", "none"]
Start = Literal["base", "sft"]


class Make(Protocol):
    """A function that makes one step, or finds that it has been made."""

    def __call__(self, place: str, command: str, seed: int, /, **inputs: Path | str | None) -> Path:
        """Return the folder of the step that `df command` makes of `inputs`; an input of None is not passed on.

        `place` is the step's path inside the run's folder, as in `round-1/rollout`. A study, which shares steps between
        runs, keeps them elsewhere and has links there.
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
    repair_set: Path | None
    """None where no step reads one."""
    seed: int

    def start(self, kind: Start) -> Path:
        """The base, or the base trained on the repairs of the repair set as answers."""
        if kind == "base":
            return self.base
        inputs = {"repair_set": self.repair_set, "model": self.base}
        return self.make(SFT_POLICY, "sft-repair", self.seed, **inputs, prompt="policy")

    def repair_model(self, kind: RepairModel, policy: Path) -> Path | None:
        """Train a repair model, starting from `policy`, and return the step that made it; None for the kind `none`.

        `sft` stops after supervised training (eq. 1). `rl` goes on with reinforcement (eq. 4). `rl_alone` begins with
        reinforcement, so it never sees the repair set. `untrained` is `policy` itself.
        """
        if kind == "none":
            return None
        if kind == "untrained":
            return policy
        inputs = {"problems": self.problems, "policy": policy}
        if kind == "rl_alone":
            return self.make(RL, "rl-repair", self.seed, **inputs, repair_model=policy)
        sft = self.make(SFT, "sft-repair", self.seed, repair_set=self.repair_set, model=policy)
        if kind == "sft":
            return sft
        return self.make(RL, "rl-repair", self.seed, **inputs, repair_model=sft, repair_set=self.repair_set)

    def round(self, number: int, policy: Path, repair_model: Path | None, start: Path) -> Round:
        """Make round `number`, counted from 1: roll out `policy`, build masks, train the next policy.

        `start` is the policy that round 1 began with, which a KL term compares with.
        """
        seed, problems = self.round_seed(number), self.problems
        place = round_folder(Path(), number)
        rollouts = self.make(str(place / ROLLOUT), "rollout", seed, problems=problems, policy=policy)
        inputs = {"rollouts": rollouts, "problems": problems, "repair_model": repair_model, "policy": policy}
        groups = self.make(str(place / MASKS), "build-masks", seed, **inputs)
        inputs = {"groups": groups, "problems": problems, "policy": policy, "reference": start}
        trained = self.make(str(place / TRAIN), "train-policy", seed, **inputs)
        return Round(rollouts, groups, trained)

    def round_seed(self, number: int) -> int:
        """Seed of every step of a round: runs with different seeds share none, up to 999 rounds each."""
        return self.seed * 1000 + number

    def rounds(self, count: int, policy: Path, repair_model: Path | None) -> Iterator[Round]:
        """Make `count` rounds, each from the policy that the one before trained; yield each when it is made."""
        start = policy
        for number in range(1, count + 1):
            made = self.round(number, policy, repair_model, start)
            yield made
            policy = made.policy

    def scores(self, place: str, policy: Path, problems: Path) -> Path:
        """Evaluate `policy` on `problems`, and return the folder with its `scores`."""
        return self.make(place, "evaluate", self.seed, problems=problems, model=policy)

    def run(self, repair_model: RepairModel, rounds: int, test: Path) -> None:
        """Make a whole run: a repair model of this kind, `rounds` rounds, the scores of the base and the last policy.

        Both are evaluated on the problems `test`.
        """
        repairs, policy = self.repair_model(repair_model, self.base), self.base
        for made in self.rounds(rounds, self.base, repairs):
            policy = made.policy
        self.scores(scores_place(0), self.base, test)
        self.scores(scores_place(rounds), policy, test)


def round_folder(run: Path, number: int) -> Path:
    """Rounds count from 1."""
    return run / f"round-{number}"


def scores_place(number: int) -> str:
    """Name of the evaluation on test problems of the policy after that round; 0 is the run's first."""
    return f"evaluate-round-{number}" if number else BASE


def validation_folder(number: int) -> str:
    """Name of a loop's evaluation of the policy after that round; 0 is the policy that it starts from."""
    return f"{VALIDATION}-round-{number}" if number else f"{VALIDATION}-base"


_COMMANDS = {SFT: "sft-repair", RL: "rl-repair"}
_ROUND = re.compile(r"round-([1-9]\d*)")


def training_place(step: Path) -> tuple[Path, str] | None:
    """The folder of the run that a training step's folder lies in, and the step's command; None where it lies in none.

    `mine/round-2/train-policy` gives `mine` and `train-policy`.
    """
    step = step.absolute()
    if step.name in _COMMANDS:
        return step.parent, _COMMANDS[step.name]
    in_round = step.name in (TRAIN, RL_AGAIN) and _ROUND.fullmatch(step.parent.name)
    return (step.parent.parent, step.name) if in_round else None


def round_number(step: Path) -> int:
    """Number of the round that a step's folder lies in; 1 where it lies in none."""
    found = _ROUND.fullmatch(step.absolute().parent.name)
    return int(found[1]) if found else 1


def trained_before(step: Path) -> list[Path]:
    """Folders in which the training steps of its run lie that come before this one, whether they were made or not.

    The step is one of which `training_place` knows the run.
    """
    step = step.absolute()
    if step.name in _COMMANDS:
        return [step.parent / SFT] if step.name == RL else []
    run, number = step.parent.parent, int(step.parent.name.removeprefix("round-"))
    rounds = [round_folder(run, n) / name for n in range(1, number + 1) for name in (TRAIN, RL_AGAIN)]
    return [run / SFT, run / RL, *rounds[: rounds.index(step)]]
