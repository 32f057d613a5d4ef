"""Repairs of repair RL as the auditor left them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from stages.artifacts.columns import EPISODES
from stages.artifacts.manifests import read_manifest
from stages.artifacts.store import iterate_rows
from stages.audit.auditor import MEANINGS
from stages.core.selection import is_correct
from stages.errors import DataError

CLEAN = "clean"
"""Verdict and label of a repair that is not flagged."""
LABELS: Mapping[str, str] = {
    CLEAN: "it corrects the error where it was made, and its reasoning leads to its answer",
    **MEANINGS,
}
"""What a person can say of a repair, each with its meaning: `clean`, or the category that it is flagged for."""


class AuditedRepair(NamedTuple):
    """A right repair and what the auditor said of it: `clean`, or its category."""

    problem_id: str
    error: str
    text: str
    verdict: str


class Audit(NamedTuple):
    """The episodes of one `df rl-repair`, by id: those with a verdict, and the others with the reason.

    An id is `iteration/problem_id/sample/attempt`; `#2` follows where an iteration repaired the same error twice.
    """

    repairs: dict[str, AuditedRepair]
    left_out: dict[str, str]
    """Reason by episode id: `wrong`, `unscored` (no auditor looks at such repairs), or `no_verdict` of a right one."""


def read_audit(folder: Path) -> Audit:
    """The episodes in the output of `df rl-repair`.

    Raises:
        ArtifactError: the step is not complete.
        DataError: it has no episodes, or a repair is flagged without a category.
    """
    threshold = read_manifest(folder)["recipe"]["reward"]["threshold"]
    file = folder / f"{EPISODES.name}.parquet"
    audit = Audit({}, {})
    seen: Counter[str] = Counter()
    for number, row in enumerate(iterate_rows(file, EPISODES)):
        name = "/".join(str(row[part]) for part in ("iteration", "problem_id", "sample", "attempt"))
        seen[name] += 1
        episode_id = name if seen[name] == 1 else f"{name}#{seen[name]}"
        if row["reward"] is None:
            audit.left_out[episode_id] = "unscored"
        elif not is_correct(row["reward"], threshold):
            audit.left_out[episode_id] = "wrong"
        elif row["gate_audit"] is None:
            audit.left_out[episode_id] = "no_verdict"
        else:
            verdict = CLEAN if row["gate_audit"] else row["category"]
            if verdict is None:
                raise DataError(f"{file} row {number}: flagged, but for no category; run df rl-repair again")
            audit.repairs[episode_id] = AuditedRepair(row["problem_id"], row["error"], row["text"], verdict)
    return audit
