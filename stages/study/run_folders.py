"""The folders of a study's runs: each shows its steps where a run of `make all` has them, as links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

RUNS = "runs"
_TESTED = re.compile(r"(.+)-seed-(\d+)")


def run_folder(out: Path, variant: str, seed: int, tuned: float | None) -> Path:
    """Of one run of the study `out`; `tuned` is the learning rate of one that tunes it."""
    return out / RUNS / (f"{variant}-seed-{seed}" + ("" if tuned is None else f"-learning-rate-{tuned:g}"))


def runs_on_test(out: Path) -> Iterator[tuple[str, int, Path]]:
    """Variant, seed and folder of each run on test problems that has begun, in this order."""
    found = ((_TESTED.fullmatch(folder.name), folder) for folder in (out / RUNS).glob("*"))
    yield from sorted((name[1], int(name[2]), folder) for name, folder in found if name)
