"""What measures a policy is not trained on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from stages.artifacts.columns import PROBLEMS, TableSpec
from stages.artifacts.store import iterate_rows
from stages.errors import DataError

_NAMED = 3
"""So many problems are named."""


def check_unseen(train: Path, measuring: Path, spec: TableSpec[Any] = PROBLEMS) -> None:
    """Refuse problems to measure with that stand among the rows to train on, problems or a repair set, whatever the id.

    Problems are the same if their questions are, and their images and frames byte for byte as the files have them.

    Raises:
        DataError: names some; or a file cannot be read.
    """
    ids = {_shown(row): row["problem_id"] for row in iterate_rows(measuring, PROBLEMS)}
    trained = ((row["problem_id"], ids.get(_shown(row))) for row in iterate_rows(train, spec))
    both = [f"{name} (there {other})" for other, name in trained if name is not None]
    if both:
        named = ", ".join(both[:_NAMED]) + (", …" if len(both) > _NAMED else "")
        raise DataError(
            f"{measuring}: {len(both)} of its problems stand in {train} too: {named}; leave them out of one of the two"
        )


def _shown(row: Any) -> bytes:
    """What a policy is shown of a problem, as a digest."""
    digest = hashlib.sha256(" ".join(row["question"].split()).encode())
    for column in ("images", "video"):
        digest.update(column.encode())
        for image in row[column] or ():
            digest.update(hashlib.sha256((image or {}).get("bytes") or b"").digest())
    return digest.digest()
