"""Rows that cannot be used: refused before any compute, or left out, counted and listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from stages.errors import DataError, RowError

OnBadRow = Literal["fail", "drop"]


class BadRow(NamedTuple):
    """A problem that is left out, as `dropped` lists it."""

    problem_id: str
    reason: str
    message: str
    """Value, place and remedy."""

    @classmethod
    def of(cls, problem_id: str, error: RowError) -> BadRow:
        return cls(problem_id, error.reason, str(error))


def refuse(bad: Sequence[BadRow], on_bad_row: OnBadRow, path: Path, *, left: int) -> None:
    """Stop where a row is bad, unless bad rows are dropped and some are `left`.

    Raises:
        DataError: tells the first one and how many there are of each reason, or that no row is left.
    """
    if bad and on_bad_row == "fail":
        more = f" ({len(bad)} bad rows: {counted(bad)})" if len(bad) > 1 else ""
        raise DataError(f"{bad[0].message}{more}; --on-bad-row drop leaves bad rows out")
    if bad and not left:
        raise DataError(f"{path}: no rows left ({counted(bad)}), the first: {bad[0].message}")


def counted(bad: Sequence[BadRow]) -> str:
    """How many there are of each reason."""
    return ", ".join(f"{reason} {rows}" for reason, rows in sorted(Counter(row.reason for row in bad).items()))
