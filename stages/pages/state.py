"""How far a run has come: which of its steps are complete, and what they cost."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stages.artifacts.columns import TableSpec
from stages.artifacts.ledger import training_cost
from stages.artifacts.manifests import read_manifest
from stages.chain import BASE, MASKS, RL, RL_AGAIN, ROLLOUT, SFT, SFT_POLICY, TRAIN, VALIDATION, round_folder
from stages.errors import ArtifactError

Manifest = Mapping[str, Any]
_ROUND = re.compile(r"round-([1-9]\d*)")
_SCORED = {step: re.compile(rf"{step}-round-([1-9]\d*)") for step in ("evaluate", VALIDATION)}
"""Evaluations on test problems, as `make all` makes them, and on validation problems, as a loop does."""


@dataclass(frozen=True)
class RunState:
    """A run of `make all`, of a loop or of a study, complete or under way."""

    folder: Path
    rounds: int
    """How many have begun."""
    steps: Mapping[str, Manifest]
    """Manifests of the complete steps by their place in the run, in pipeline order, evaluations last."""
    missing: Mapping[str, str]
    """The other steps of the rounds that have begun, and what is wrong with each."""

    def of_round(self, number: int, step: str) -> Manifest | None:
        """The manifest of a round's step, if it is complete."""
        return self.steps.get(f"round-{number}/{step}")

    def with_rows(self, number: int, step: str, spec: TableSpec[Any]) -> Path | None:
        """The folder of a round's step, if it is complete and has these rows: a study may have removed them."""
        folder = round_folder(self.folder, number) / step
        return folder if self.of_round(number, step) and any(folder.glob(f"{spec.name}-*.parquet")) else None

    def scored(self) -> dict[int, Path]:
        """Folders of the complete evaluations, by the round that they follow; 0 is the base policy.

        `make all` evaluates on test problems, a loop on validation problems. In a folder that has both, the set with
        more evaluations counts.
        """
        return max((self._scored(step) for step in _SCORED), key=len)

    def _scored(self, step: str) -> dict[int, Path]:
        found = {0: self.folder / f"{step}-base"} if f"{step}-base" in self.steps else {}
        numbers = _numbers(_SCORED[step], self.steps)
        return found | {number: self.folder / f"{step}-round-{number}" for number in numbers}

    def cost_before(self, place: str) -> float:
        """Device-seconds (eq. 29) of the complete steps before the step at `place`, evaluations left out.

        A `place` that is none of those steps, as an evaluation's, comes after all of them.
        """
        names = [*_places(self.folder, self.rounds)]
        return self._spent(names[: names.index(place)] if place in names else names)

    def cost_after(self, number: int) -> float:
        """Device-seconds that the policy of round `number` has cost, as in `cost_before`; 0.0 of the base, round 0.

        A repair model that is trained again after the round serves the policies of later rounds.
        """
        place = f"round-{number}/{TRAIN}"
        return self.cost_before(place) + self._spent([place]) if number else 0.0

    @property
    def cost(self) -> float:
        """Device-seconds of the whole run so far, as in `cost_before`."""
        return self._spent(_places(self.folder, self.rounds))

    def _spent(self, places: Iterable[str]) -> float:
        return sum(training_cost(self.steps[place]) for place in places if place in self.steps)


class Source(NamedTuple):
    """A run whose rollouts and repairs a page shows, and the words by which they are filtered."""

    state: RunState
    name: str
    """The run's or its study's."""
    variant: str = "no variant"
    seed: str = "no seed"
    """Of a run of a study."""


def where(sources: Sequence[Source], place: int) -> str:
    """What begins the titles of one of several runs."""
    source = sources[place]
    words = [source.name] if len({of.name for of in sources}) > 1 else []
    words += [source.variant, f"seed {source.seed}"] if source.variant != "no variant" else []
    return "".join(f"{word}, " for word in words)


def read_state(run: Path) -> RunState | None:
    """The run in a folder; None where there is no step of one."""
    names = [folder.name for folder in run.iterdir() if folder.is_dir()] if run.is_dir() else []
    rounds = max(_numbers(_ROUND, names), default=0)
    evaluations = [name for step in _SCORED for name in _evaluations(step, names, rounds)]
    steps: dict[str, Manifest] = {}
    missing: dict[str, str] = {}
    for place in [*_places(run, rounds), *evaluations]:
        try:
            steps[place] = read_manifest(run / place)
        except ArtifactError as error:
            missing[place] = _told(run / place, error)
    begun = rounds or not {SFT, RL, BASE}.isdisjoint(names)
    return RunState(run, rounds, steps, missing) if begun else None


def _evaluations(step: str, names: Collection[str], rounds: int) -> list[str]:
    """Those that are there or begun, and those that `make all` is to make."""
    found = [f"{step}-round-{number}" for number in sorted(_numbers(_SCORED[step], names))]
    if f"{VALIDATION}-base" in names:
        return ([f"{step}-base"] if f"{step}-base" in names else []) + found
    if step == VALIDATION:
        return []
    last = f"{step}-round-{rounds}"
    return [BASE, *found, *([last] if rounds and last not in found else [])]


def _places(run: Path, rounds: int) -> Iterator[str]:
    """Steps that train, in pipeline order; a loop trains the repair model again after some of its rounds."""
    if (run / SFT_POLICY).is_dir():
        yield SFT_POLICY
    if (run / SFT).is_dir() or (run / RL).is_dir():
        yield from (SFT, RL)
    for number in range(1, rounds + 1):
        yield from (f"round-{number}/{step}" for step in (ROLLOUT, MASKS, TRAIN))
        again = f"round-{number}/{RL_AGAIN}"
        if (run / again).is_dir():
            yield again


def _told(folder: Path, error: ArtifactError) -> str:
    if not folder.is_dir():
        return "not begun"
    return str(error).removeprefix(f"{folder}: ")


def _numbers(pattern: re.Pattern[str], names: Any) -> list[int]:
    return [int(found[1]) for name in names if (found := pattern.fullmatch(name))]
