"""Parquet in and out: checked against the column spec, written whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.artifacts.columns import Row, TableSpec
from stages.artifacts.digests import file_sha256
from stages.artifacts.writing import PARTIAL, replace, writing
from stages.errors import DataError
from stages.runtime.batching import batched

ROWS_PER_GROUP = 256
ROWS_AT_ONCE = 4096
"""Rows that become a table together."""
_BUFFER_BYTES = 1 << 20
_read_whole: set[str] = set()
"""SHA-256 of files without a fault."""


def write_rows(path: Path, spec: TableSpec[Row], rows: Sequence[Row]) -> None:
    """Write rows as one Parquet file; the file appears only when it is complete.

    Raises:
        DataError: a row has a null where the spec has none.
        ArtifactError: the file system refuses it.
    """
    schema = spec.schema()
    write_tables(path, spec, (pa.Table.from_pylist(some, schema=schema) for some in batched(rows, ROWS_AT_ONCE)))


def write_tables(path: Path, spec: TableSpec[Any], tables: Iterable[pa.Table]) -> int:
    """Write tables of the spec's schema as one Parquet file, as they come; gives the number of rows.

    The file appears only when it is complete. Its row groups do not depend on where one table ends.

    Raises:
        DataError: a row has a null where the spec has none.
        ArtifactError: the file system refuses it.
    """
    schema = spec.schema()
    partial = path.with_name(path.name + PARTIAL)
    rows = 0
    options = {"use_dictionary": _dictionary_columns(schema), "write_page_checksum": True}
    with writing(path):
        writer = pq.ParquetWriter(partial, schema, **options)
    try:
        for table in _whole_row_groups(tables, schema):
            spec.check_nulls(table, str(path), rows)
            with writing(path):
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            rows += len(table)
        with writing(path):
            writer.close()
    except BaseException:
        with suppress(OSError):  # of a place that was made read-only meanwhile
            partial.unlink()
        with suppress(OSError):  # of a file that is gone
            writer.close()
        raise
    replace(partial, path)
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


def parquet_files(path: Path, spec: TableSpec[Any]) -> list[Path]:
    """The file itself, or a folder's shards of this artifact in order or its one file, each with the right columns.

    Raises:
        DataError: nothing there, not Parquet, or other columns.
    """
    names = (f"{spec.name}-*.parquet", f"{spec.name}.parquet")
    shards = (file for name in names for file in path.glob(name))
    # A number of six digits comes after one of five.
    files = sorted(shards, key=lambda file: (len(file.name), file.name)) if path.is_dir() else [path]
    if len(files) > 1 and path / names[1] in files:
        raise DataError(f"{path}: both {names[0]} and {names[1]} in this folder; keep one of them")
    if not files or not files[0].is_file():
        raise DataError(f"{path}: {_lacking(path, names)}; {spec.name} is written by {spec.producer}")
    for file in files:
        with reading(file):
            schema = pq.read_schema(file)
        spec.check_schema(schema, str(file))
    return files


def _lacking(path: Path, names: Sequence[str]) -> str:
    """What there is none of, and which folders inside have some."""
    if not path.is_dir():
        return "no such file or folder"
    inside = sorted({str(file.parent) for name in names for file in path.glob(f"*/{name}")})
    return f"no {names[0]} in this folder" + (f", but in {' and '.join(inside)}" if inside else "")


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """What pyarrow makes of a file that is cut off, changed or no Parquet, as our error.

    Raises:
        DataError: names the file.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{file}: not a readable Parquet file ({reason}); write it again, or take an undamaged copy"
        ) from error


def open_parquet(file: Path) -> pq.ParquetFile:
    """A file whose pages are compared with their checksums, where it has them; to be used while `reading`.

    Raises:
        pa.ArrowInvalid: its footer contradicts itself.
    """
    # Its own buffer would keep what was read until the file ends; without one it would hold a long row group whole.
    parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
    in_groups = sum(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
    if in_groups != parquet.metadata.num_rows:
        raise pa.ArrowInvalid(f"its footer says {parquet.metadata.num_rows} rows, and {in_groups} in its row groups")
    return parquet


def read_group(parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
    """These columns of a row group, those that are there; to be used while `reading`.

    Raises:
        pa.ArrowInvalid: it is not whole.
    """
    table = parquet.read_row_group(group, columns=columns)
    _check_whole(parquet, [group], _places(table))
    table.validate(full=True)
    return table


def iterate_rows(path: Path, spec: TableSpec[Row]) -> Iterator[Row]:
    """Rows in order, one row group in memory at a time.

    Raises:
        DataError: as `parquet_files`, or a null where the spec has none.
    """
    for file in parquet_files(path, spec):
        for table in iterate_tables(file, spec):
            yield from table.to_pylist()


def iterate_tables(file: Path, spec: TableSpec[Any]) -> Iterator[pa.Table]:
    """The spec's columns of one file that `parquet_files` gave, as many rows at a time as a row group has.

    Raises:
        DataError: a null where the spec has none.
    """
    names = [column.name for column in spec.columns]
    first_row = 0
    for table in read_tables(file, ROWS_PER_GROUP, names):
        table = spec.with_optional(table)
        spec.check_nulls(table, str(file), first_row)
        first_row += len(table)
        yield table


def read_tables(file: Path, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """A file that is looked at as it is read: so many rows at a time, of these columns or of all.

    Raises:
        DataError: it is cut off or changed, or no Parquet.
    """
    found: Counter[str] = Counter()
    with reading(file):
        parquet = open_parquet(file)
        batches = parquet.iter_batches(rows, columns=columns)
    while True:
        with reading(file):
            batch = next(batches, None)
            if batch is None:
                break
            batch.validate(full=True)
        table = pa.Table.from_batches([batch])
        found.update(_places(table))
        yield table
    with reading(file):
        _check_whole(parquet, range(parquet.num_row_groups), found)


def _places(table: pa.Table) -> Counter[str]:
    """Rows, under no name, and by column of lists its values; an empty list and a null have one place there too."""
    lengths = {
        name: pc.max_element_wise(pc.list_value_length(table[name]), 1)
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if pa.types.is_list(kind) and not _holds_lists(kind.value_type)
    }
    return Counter({"": len(table)} | {name: pc.sum(of_rows).as_py() or 0 for name, of_rows in lengths.items()})


def _holds_lists(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_lists(field.type) for field in kind)
    return pa.types.is_nested(kind)


def _check_whole(parquet: pq.ParquetFile, groups: Iterable[int], found: Counter[str]) -> None:
    """A page's header tells how much is in it, and no checksum is over that; the footer tells it too.

    `found` are the `_places` of all that was read of the row groups.

    Raises:
        pa.ArrowInvalid: there is more or less than the footer says.
    """
    names = [parquet.schema.column(k).path.partition(".")[0] for k in range(len(parquet.schema))]
    lists = {name: k for k, name in enumerate(names) if name in found}  # to ask for what was not read may abort
    expected: Counter[str] = Counter()
    for group in map(parquet.metadata.row_group, groups):
        expected.update({name: group.column(k).num_values for name, k in lists.items()} | {"": group.num_rows})
    for name, count in expected.items():
        if found[name] != count:
            what = f"values of {name}" if name else "rows"
            raise pa.ArrowInvalid(f"{found[name]} {what}, its footer says {count}")


def check_parquet(file: Path) -> None:
    """Read all of it, unless this process has read the same bytes before.

    Raises:
        DataError: as `read_tables`.
    """
    with reading(file):
        digest = file_sha256(file)
    if digest not in _read_whole:
        for _ in read_tables(file, ROWS_PER_GROUP):
            pass
        _read_whole.add(digest)


def count_rows(path: Path, spec: TableSpec[Any]) -> int:
    """Rows of an artifact, from the files' footers."""
    rows = 0
    for file in parquet_files(path, spec):
        with reading(file):
            rows += open_parquet(file).metadata.num_rows
    return rows
