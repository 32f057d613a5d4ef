"""The steps of a run of `make all`, and what its summary was made from. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.columns import SUMMARY
from stages.artifacts.manifests import read_json, read_manifest
from stages.artifacts.writing import write_text
from stages.chain import MASKS, Chain, round_folder

SUMMARY_FILE = f"{SUMMARY.name}.parquet"
SUMMARIZED = "summary.json"
"""Beside the summary: what it was made from."""
PAGE_FILE = "report.html"
"""What shows it."""


def has_repair_model(run: Path) -> bool:
    """Whether the run trained one.

    Raises:
        ArtifactError: the first round's masks are not complete.
    """
    return "repair_model" in read_manifest(round_folder(run, 1) / MASKS)["inputs"]


def all_steps(run: Path, rounds: int) -> list[Path]:
    """Every step that a summary of so many rounds reads, in pipeline order."""
    folders: list[Path] = []

    def make(place: str, _command: str, _seed: int, /, **_inputs: Path | str | None) -> Path:
        folders.append(run / place)
        return folders[-1]

    chain = Chain(make, problems=Path(), base=Path(), repair_set=Path(), seed=0)
    chain.run("rl" if has_repair_model(run) else "none", rounds, test=Path())
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
