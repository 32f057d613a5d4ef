"""A dataset as a stream of rows: a file, a folder, or a name on the Hugging Face hub."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from datasets import DatasetBuilder, Features, StreamingDownloadManager, Value, config, load_dataset_builder
from datasets.packaged_modules.json.json import JsonConfig
from datasets.packaged_modules.parquet.parquet import ParquetConfig
from datasets.utils.file_utils import xopen
from huggingface_hub import DatasetCard

from stages.artifacts.digests import files_sha256
from stages.artifacts.store import read_tables
from stages.errors import DataError
from stages.importing.cells import alternatives
from stages.untrusted.strings_within import named, texts

config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would tell a server of every file that is read here

_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
ROWS_AT_ONCE = 64
"""Rows of a Parquet file in memory."""


@dataclass(frozen=True)
class Source:
    """An opened dataset."""

    name: str
    stream: Iterable[dict[str, Any]]
    """Its rows, from the first each time, images not decoded."""
    columns: tuple[str, ...]
    """Names of columns, and of a struct's fields as `struct.field`."""
    folder: Path | None
    """Where paths of images start."""
    content: str
    """Hex SHA-256 of a folder's files, or what `datasets` tells the hub's revision by."""

    def rows(self, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Rows in order, one batch in memory at a time.

        Raises:
            DataError: a file that cannot be read.
        """
        rows = iter(islice(self.stream, limit))
        for number in count():
            with _told(f"{self.name} row {number}"):
                row = next(rows, None)
            if row is None:
                return
            yield row

    def check_columns(self, names: Sequence[str]) -> None:
        """Refuse names that no column has.

        Raises:
            DataError: lists the columns there are.
        """
        missing = [alternatives(name)[0] for name in names if not self._has(name)]
        if missing:
            raise DataError(
                f"{self.name}: no column {', '.join(missing)}; it has {', '.join(self.columns)}. "
                "Name its columns (--question, --images, --answer, --choices, --kind, --id) or choose another --preset"
            )

    def _has(self, name: str) -> bool:
        return name.endswith("?") or any(column in self.columns for column in (name, *alternatives(name)))


def open_source(name: str, split: str | None, config_name: str | None) -> Source:
    """Open a dataset for streaming; its first row is read to learn the columns.

    Raises:
        DataError: nothing there, a format that is not known, no such split or config, or no rows.
    """
    path = Path(name)
    with _told(name):
        builder = _builder(name, path, config_name)
        if path.exists():
            _check_json(builder)
        streams = builder.as_streaming_dataset()
        chosen = _split(name, split, list(streams))
        features = streams[chosen].features
        stream: Iterable[dict[str, Any]] = streams[chosen]
        if features is not None and not isinstance(builder.config, JsonConfig):  # columns of mixed types need decoding
            stream = streams[chosen].decode(False)
        if isinstance(builder.config, ParquetConfig) and path.exists():
            stream = _ParquetRows(tuple(builder.config.data_files[chosen]))
        first = next(iter(stream), None)
    if first is None:
        raise DataError(f"{name}: no rows in it")
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    content = _folder_sha256(path) if path.is_dir() else "" if path.is_file() else str(builder.hash)
    return Source(name, stream, tuple(_names(features or first)), folder, content)


@dataclass(frozen=True)
class _ParquetRows:
    """Local Parquet files; `datasets`' own reader keeps more and more of a file, and a long row group whole."""

    files: tuple[str, ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self.files:
            for table in read_tables(Path(file), ROWS_AT_ONCE):
                yield from table.to_pylist()


def _builder(name: str, path: Path, config_name: str | None) -> DatasetBuilder:
    if path.is_dir():
        _check_cards(path)
        return load_dataset_builder(str(path.absolute()), config_name)
    if not path.is_file():
        in_a_folder = len(path.parts) == 2 and path.parent.exists()
        local = path.is_absolute() or name.startswith(".") or len(path.parts) > 2 or in_a_folder
        if local or path.suffix in _READERS:
            raise DataError(f"{name}: no such file or folder")
        return load_dataset_builder(name, config_name)
    if path.suffix not in _READERS:
        raise DataError(f"{name}: not one of {', '.join(_READERS)}; give such a file, or a folder")
    options: dict[str, Any] = {}
    if _READERS[path.suffix] == "csv":
        options = _text_columns(path) | {"sep": "\t" if path.suffix == ".tsv" else ","}
    return load_dataset_builder(_READERS[path.suffix], data_files=str(path.absolute()), **options)


def _check_cards(folder: Path) -> None:
    """Refuse a folder whose card names files that do not lie in it: URLs would be fetched, others read.

    Raises:
        DataError: it does.
    """
    readme, plain = folder / config.REPOCARD_FILENAME, folder / config.REPOYAML_FILENAME
    cards: dict[Path, Any] = {}
    if readme.is_file():
        cards[readme] = DatasetCard.load(readme).data.to_dict()
    if plain.is_file():
        cards[plain] = yaml.safe_load(plain.read_text(encoding="utf-8"))
    for card, values in cards.items():
        for name in [text for key in ("data_files", "data_dir") for part in named(values, key) for text in texts(part)]:
            outside = name.startswith(("/", "~")) or ".." in PurePosixPath(name).parts
            if outside or "://" in name or "::" in name:
                raise DataError(
                    f"{card}: names {name}, which does not lie in the folder; copy it there and name it by its path "
                    "in the folder"
                )


def _check_json(builder: DatasetBuilder) -> None:
    """Refuse JSON among its files, compressed or not, that their reader crashes on: a null for a row, deep nesting.

    Raises:
        DataError: a row is no object; tells its place.
        ValueError, RecursionError: it is no JSON, or nested too deep.
    """
    pictures = getattr(builder, "EXTENSIONS", ())
    files = chain.from_iterable((builder.config.data_files or {}).values())
    manager = StreamingDownloadManager()
    # As the reader goes about it, which takes a file of another name for compressed when its first bytes say so.
    unpacked = manager.extract([file for file in files if Path(file).suffix.lower() not in pictures])
    for file in manager.iter_files(unpacked):
        is_json = isinstance(builder.config, JsonConfig) or _READERS.get(Path(file.split("::")[0]).suffix) == "json"
        for place, row in _json_rows(file) if is_json else ():
            if not isinstance(row, dict):
                raise DataError(f"{file} {place}: {json.dumps(row)[:60]}, not an object of columns; take it out")


def _json_rows(file: str) -> Iterator[tuple[str, Any]]:
    """Of a list, of lines, or of one object over many lines, each with its place."""
    with xopen(file, "r", encoding="utf-8-sig", errors="replace") as content:
        first = next((line for line in content if line.strip()), "")
        content.seek(0)
        if first.startswith("["):
            yield from ((f"row {number}", row) for number, row in enumerate(json.load(content)))
        elif _is_json(first):
            yield from ((f"line {number}", json.loads(line)) for number, line in enumerate(content, 1) if line.strip())
        else:
            yield "row 0", json.load(content)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _text_columns(path: Path) -> dict[str, Any]:
    """Every column as the text that stands there: 007 is no 7, and None is a word."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","), [])
    if len(set(header)) < len(header):
        raise DataError(f"{path}: two columns of one name in its first line; rename them")
    return {"features": Features({name: Value("string") for name in header}), "keep_default_na": False}


def _split(name: str, wanted: str | None, splits: Sequence[Any]) -> str:
    there = [str(split) for split in splits]
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted is None:
        raise DataError(f"{name}: it has the splits {', '.join(there)}; choose one with --split")
    if wanted not in there:
        raise DataError(f"{name}: no split {wanted}; it has {', '.join(there)}")
    return wanted


def _names(columns: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in columns.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")


def _folder_sha256(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [str(file.relative_to(folder)) for file in files]
    parts = dict(zip(names, files_sha256(files), strict=True))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _told(place: str) -> Iterator[None]:
    """What `datasets` raises, as our error."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the readers of its many formats raise anything
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise DataError(f"{place}: cannot be read as a dataset ({type(error).__name__}: {reason})") from error
