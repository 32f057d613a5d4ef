"""Which run a training step belongs to for its trackers, and what trackers that keep a run elsewhere know of it."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from stages.artifacts.columns import METRICS
from stages.artifacts.manifests import read_json, read_plan
from stages.artifacts.plan import ORIGIN
from stages.artifacts.step import TRACKING
from stages.artifacts.store import ROWS_PER_GROUP, read_tables
from stages.artifacts.writing import write_text
from stages.chain import trained_before, training_place

NOTE = "run.json"
"""File in the trackers' folder that keeps a `Known`."""


class TrackedRun(NamedTuple):
    """A run as trackers have it, and where one of its training steps stands in it."""

    folder: Path
    """Folder of the trackers' files."""
    name: str
    step: str
    """The step's folder inside the run's; empty where the step is a run of its own."""
    prefix: str
    """What stands before the names of the step's metrics."""
    before: int
    """Optimizer steps that the run made before the step."""


NO_RUN = TrackedRun(Path(), "", "", "", 0)


def tracked_run(out: Path) -> TrackedRun:
    """The run of the training step in `out`: that of `make all` or of a loop, or one of its own in any other folder.

    Raises:
        DataError: the metrics of an earlier step cannot be read.
    """
    found = training_place(out)
    if found is None:
        return TrackedRun(out / TRACKING, "/".join(out.absolute().parts[-2:]), "", "", 0)
    run, command = found
    before = sum(map(_steps_logged, trained_before(out)))
    return TrackedRun(run / TRACKING, run.name, str(out.absolute().relative_to(run)), f"{command}/", before)


def _steps_logged(step: Path) -> int:
    """Optimizer steps of a training step; 0 where it is not complete."""
    file = step / f"{METRICS.name}.parquet"
    if not file.is_file():
        return 0
    steps = [number for table in read_tables(file, ROWS_PER_GROUP, ["step"]) for number in table["step"].to_pylist()]
    return max(steps) - min(steps) + 1 if steps else 0


@dataclass
class Known:
    """What trackers elsewhere know of a run: they go on with it, and cannot take back what they were told."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    told: int = 0
    """Last optimizer step of the run that they were told of."""
    plans: dict[str, str] = field(default_factory=dict)
    """Digest of the plan of each training step that told them."""

    def write(self, run: TrackedRun) -> None:
        write_text(run.folder / NOTE, json.dumps(vars(self)) + "\n")


def known(run: TrackedRun, out: Path) -> Known:
    """What they know of the run; nothing where this step, in `out`, was made from another plan when they were told."""
    noted = read_json(run.folder / NOTE)
    plan = {name: value for name, value in (read_plan(out) or {}).items() if name != ORIGIN}
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    found = Known() if not noted or noted["plans"].get(run.step, digest) != digest else Known(**noted)
    found.plans[run.step] = digest
    return found
