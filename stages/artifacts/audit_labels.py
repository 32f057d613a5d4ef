"""The sheet that a labeller fills in, as CSV or Parquet, and how it comes back."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import csv as arrow_csv

from stages.artifacts.columns import AUDIT_LABELS
from stages.artifacts.rows import AnyRow
from stages.artifacts.store import iterate_rows, write_rows
from stages.errors import DataError
from stages.untrusted.printable import told

_ID = "episode_id"
_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet takes for the beginning of a formula."""
_BLOCK_BYTES = 1 << 26
"""A row, with its texts of many lines, has to fit into one."""


class Label(NamedTuple):
    """One row of a sheet; `label` is empty where nobody filled it in."""

    place: str
    """Where it stands: its row, counted from 0 without the header, and its id."""
    episode_id: str
    label: str


def write_labels(path: Path, rows: Sequence[AnyRow]) -> None:
    """Write rows of `audit_labels` in the format that the path ends with.

    In a CSV file texts that a spreadsheet would run as a formula begin with an apostrophe, control characters but for
    those of ids are escapes, and a byte order mark tells that it is UTF-8. Ids, which begin with a digit, come back.
    """
    if path.suffix == ".parquet":
        write_rows(path, AUDIT_LABELS, rows)
        return
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(column.name for column in AUDIT_LABELS.columns)
        names = [column.name for column in AUDIT_LABELS.columns]
        writer.writerows([row[name] if name == _ID else _plain(row[name]) for name in names] for row in rows)


def _plain(text: str | None) -> str:
    text = told(text or "")
    return f"'{text}" if text.startswith(_FORMULA) else text


def read_labels(path: Path) -> list[Label]:
    """The labels of a filled-in sheet, or of any file with its columns `episode_id` and `label`.

    Raises:
        DataError: neither CSV nor Parquet, not readable as such, or without those columns.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise DataError(f"{path}: ends in {path.suffix or 'nothing'}; give labels as .csv or .parquet")
    rows = _csv_rows(path) if path.suffix == ".csv" else iterate_rows(path, AUDIT_LABELS)
    return [
        Label(f"row {number} ({row['episode_id']})", row["episode_id"].strip(), (row["label"] or "").strip())
        for number, row in enumerate(rows)
    ]


def _csv_rows(path: Path) -> list[AnyRow]:
    texts = {column.name: column.type for column in AUDIT_LABELS.columns}
    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(column_types=texts, strings_can_be_null=False),
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: not a readable CSV file ({error}); save it as CSV with commas between the columns, in UTF-8"
        ) from error
    AUDIT_LABELS.check_schema(table.schema, str(path))
    return table.to_pylist()
