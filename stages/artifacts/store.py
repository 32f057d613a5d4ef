"""Parquet in and out: checked against the column spec, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.artifacts.columns import TableSpec
from stages.batching import batched
from stages.errors import DataError

ROWS_PER_GROUP = 256
ROWS_AT_ONCE = 4096
"""Rows that become a table together."""
PARTIAL = ".partial"
"""Ends the name of a file that is still being written."""


def write_rows(path: Path, spec: TableSpec, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as one Parquet file; the file appears only when it is complete.

    Raises:
        DataError: a row has a null where the spec has none.
    """
    schema = spec.schema()
    write_tables(path, spec, (pa.Table.from_pylist(some, schema=schema) for some in batched(rows, ROWS_AT_ONCE)))


def write_tables(path: Path, spec: TableSpec, tables: Iterable[pa.Table]) -> int:
    """Write tables of the spec's schema as one Parquet file, as they come; gives the number of rows.

    The file appears only when it is complete. Its row groups do not depend on where one table ends.

    Raises:
        DataError: a row has a null where the spec has none.
    """
    schema = spec.schema()
    partial = path.with_name(path.name + PARTIAL)
    rows = 0
    with pq.ParquetWriter(partial, schema, use_dictionary=_dictionary_columns(schema)) as writer:
        try:
            for table in _whole_row_groups(tables, schema):
                spec.check_nulls(table, str(path), rows)
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
                rows += len(table)
        except BaseException:
            partial.unlink()
            raise
    os.replace(partial, path)
    return rows


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Not the lists: log-probs, images and the ids of a large vocabulary hardly repeat, and looking takes long."""
    return [field.name for field in schema if not pa.types.is_list(field.type)]


def _whole_row_groups(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows, cut where row groups end."""
    rest = schema.empty_table()
    for table in tables:
        rest = pa.concat_tables([rest, table])
        whole = len(rest) - len(rest) % ROWS_PER_GROUP
        if whole:
            yield rest.slice(0, whole)
            rest = rest.slice(whole)
    if len(rest):
        yield rest


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
        for table in iterate_tables(file, spec):
            yield from table.to_pylist()


def iterate_tables(file: Path, spec: TableSpec) -> Iterator[pa.Table]:
    """The spec's columns of one file that `parquet_files` gave, as many rows at a time as a row group has.

    Raises:
        DataError: a null where the spec has none.
    """
    names = [column.name for column in spec.columns]
    first_row = 0
    parquet = pq.ParquetFile(file, pre_buffer=False)  # a buffer would keep what was read until the file ends
    for batch in parquet.iter_batches(ROWS_PER_GROUP, columns=names):
        table = spec.with_optional(pa.Table.from_batches([batch]))
        spec.check_nulls(table, str(file), first_row)
        first_row += len(table)
        yield table


def count_rows(path: Path, spec: TableSpec) -> int:
    """Rows of an artifact, from the files' footers."""
    return sum(pq.ParquetFile(file).metadata.num_rows for file in parquet_files(path, spec))
