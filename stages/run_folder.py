"""The steps of a run of `make all` or a loop, and what its summary was made from. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.artifacts.columns import SUMMARY
from stages.artifacts.manifests import MANIFEST, read_json, read_manifest
from stages.artifacts.writing import write_text
from stages.chain import (
    BASE,
    MASKS,
    RL,
    RL_AGAIN,
    ROLLOUT,
    SFT,
    TRAIN,
    Chain,
    round_folder,
    scores_place,
    validation_folder,
)
from stages.errors import ArtifactError

SUMMARY_FILE = f"{SUMMARY.name}.parquet"
SUMMARIZED = "summary.json"
"""Beside the summary: what it was made from."""
PAGE_FILE = "report.html"
"""What shows it."""


def folder_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or all of it where two would be called the same."""
    last = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    return last if len(set(last)) == len(last) else [str(folder) for folder in folders]


def is_loop(run: Path) -> bool:
    """Whether a loop's validations are all that its policies are known by: none was evaluated on test problems."""
    return (run / validation_folder(0)).is_dir() and not (run / BASE).is_dir()


def scores_folder(run: Path, number: int) -> Path:
    """Of the evaluation of the policy after that round; 0 is the base policy."""
    return run / (validation_folder(number) if is_loop(run) else scores_place(number))


def last_evaluated(run: Path) -> int:
    """The last round whose policy's evaluation is complete.

    Raises:
        ArtifactError: there is none.
    """
    begun = len(list(run.glob("round-*")))
    evaluated = [n for n in range(1, begun + 1) if (scores_folder(run, n) / MANIFEST).is_file()]
    if not evaluated:
        raise ArtifactError(
            f"{run}: no round's policy is evaluated in it; give the folder of a run of make all or of df loop with "
            "--validation, or folders of df evaluate"
        )
    return evaluated[-1]


def all_steps(run: Path, rounds: int) -> list[Path]:
    """Every step that a summary of so many rounds reads, in pipeline order."""
    return list(_steps_of_loop(run, rounds) if is_loop(run) else _steps_of_chain(run, rounds))


def _steps_of_loop(run: Path, rounds: int) -> Iterator[Path]:
    """Its repair model may have been trained elsewhere, and not every round is validated."""
    yield from (run / step for step in (SFT, RL) if (run / step).is_dir())
    for number in range(1, rounds + 1):
        yield from (round_folder(run, number) / step for step in (ROLLOUT, MASKS, TRAIN))
        again = round_folder(run, number) / RL_AGAIN
        if number < rounds and again.is_dir():
            yield again
    validations = (scores_folder(run, number) for number in range(rounds))
    yield from (folder for folder in validations if folder.is_dir())
    yield scores_folder(run, rounds)


def _steps_of_chain(run: Path, rounds: int) -> list[Path]:
    folders: list[Path] = []

    def make(place: str, _command: str, _seed: int, /, **_inputs: Path | str | None) -> Path:
        folders.append(run / place)
        return folders[-1]

    trained = "repair_model" in read_manifest(round_folder(run, 1) / MASKS)["inputs"]
    chain = Chain(make, problems=Path(), base=Path(), repair_set=Path(), seed=0)
    chain.run("rl" if trained else "none", rounds, test=Path())
    return folders


def manifests(run: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Of every step, by its folder's place in the run.

    Raises:
        ArtifactError: a step is not complete.
    """
    return {str(folder.relative_to(run)): read_manifest(folder) for folder in all_steps(run, rounds)}


def note_summary(run: Path, rounds: int) -> None:
    """Note that the summary was made from the run's steps as they are."""
    write_text(run / SUMMARIZED, json.dumps(_made_from(manifests(run, rounds)), indent=1) + "\n")


def is_summarized(run: Path, rounds: int) -> bool:
    """Whether the summary is there and was made from these rounds as they are.

    Raises:
        ArtifactError: a step is not complete.
    """
    noted = read_json(run / SUMMARIZED)
    return (run / SUMMARY_FILE).is_file() and noted == _made_from(manifests(run, rounds))


def _made_from(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: hashlib.sha256(json.dumps(step, sort_keys=True).encode()).hexdigest() for name, step in steps.items()}
