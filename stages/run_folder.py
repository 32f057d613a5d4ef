"""The folders of a run, as `make all` names them, and what its summary was made from. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.columns import SUMMARY
from stages.artifacts.manifests import read_json, read_manifest
from stages.artifacts.writing import write_text

SFT, RL = "1-sft-repair", "2-rl-repair"
ROLLOUT, MASKS, TRAIN = "rollout", "build-masks", "train-policy"
BASE = "evaluate-base"
SUMMARY_FILE = f"{SUMMARY.name}.parquet"
SUMMARIZED = "summary.json"
"""Beside the summary: what it was made from."""


def round_folder(run: Path, number: int) -> Path:
    """Rounds count from 1."""
    return run / f"round-{number}"


def final_scores(run: Path, rounds: int) -> Path:
    return run / f"evaluate-round-{rounds}"


def repair_steps(run: Path) -> list[Path]:
    """Those that trained the run's repair model, if it has one.

    Raises:
        ArtifactError: the first round's masks are not complete.
    """
    has_repair_model = "repair_model" in read_manifest(round_folder(run, 1) / MASKS)["inputs"]
    return [run / SFT, run / RL] if has_repair_model else []


def all_steps(run: Path, rounds: int) -> list[Path]:
    """Every step that a summary of so many rounds reads."""
    in_rounds = [round_folder(run, n) / step for n in range(1, rounds + 1) for step in (ROLLOUT, MASKS, TRAIN)]
    return [*repair_steps(run), run / BASE, final_scores(run, rounds), *in_rounds]


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
