"""Parquet in and out: checked against the column spec, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts.columns import TableSpec
from stages.errors import DataError

ROWS_PER_GROUP = 256
PARTIAL = ".partial"
"""Ends the name of a file that is still being written."""


def write_rows(path: Path, spec: TableSpec, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as one Parquet file; the file appears only when it is complete.

    Raises:
        DataError: a row has a null where the spec has none.
    """
    table = pa.Table.from_pylist(list(rows), schema=spec.schema())
    spec.check_nulls(table, str(path))
    partial = path.with_name(path.name + PARTIAL)
    pq.write_table(table, partial, row_group_size=ROWS_PER_GROUP, compression="zstd")
    os.replace(partial, path)


def parquet_files(path: Path, spec: TableSpec) -> list[Path]:
    """The file itself, or a folder's shards of this artifact in order, each with the right columns.

    Raises:
        DataError: nothing there, not Parquet, or other columns.
    """
    files = sorted(path.glob(f"{spec.name}-*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        wanted = f"no {spec.name}-*.parquet in this folder" if path.is_dir() else "no such file or folder"
        raise DataError(f"{path}: {wanted}; {spec.name} is written by {spec.producer}")
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: not a readable Parquet file ({error}); write it again") from error
        spec.check_schema(schema, str(file))
    return files


def iterate_rows(path: Path, spec: TableSpec) -> Iterator[dict[str, Any]]:
    """Rows in order, one row group in memory at a time.

    Raises:
        DataError: as `parquet_files`, or a null where the spec has none.
    """
    for file in parquet_files(path, spec):
        names = [column.name for column in spec.columns]
        first_row = 0
        for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_GROUP, columns=names):
            table = pa.Table.from_batches([batch])
            spec.check_nulls(table, str(file), first_row)
            first_row += len(table)
            yield from table.to_pylist()


def count_rows(path: Path, spec: TableSpec) -> int:
    """Rows of an artifact, from the files' footers."""
    return sum(pq.ParquetFile(file).metadata.num_rows for file in parquet_files(path, spec))
