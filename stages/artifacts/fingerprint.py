"""What an input is, told from its bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from stages.artifacts.digests import file_sha256, files_sha256
from stages.artifacts.manifests import MODEL, is_step, read_manifest

_MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".py"}


def fingerprint(path: Path, reads: Sequence[str] = ()) -> str:
    """Hex SHA-256 over what a stage reads: a file, a finished step's outputs, or the files of a model folder.

    `reads` are patterns of the names that count inside a folder; without them all do. Timings in a step's manifest do
    not count: a step that made the same bytes again is the same input. A path that is not on this machine (a hub
    name) is its own fingerprint.

    Raises:
        ArtifactError: a step that is not complete.
    """
    if path.is_file():
        return file_sha256(path)
    if is_step(path):
        files = read_manifest(path)["files"]
        return _digest({name: files[name]["sha256"] for name in matching(files, reads)})
    if path.is_dir():
        files = sorted(files_read(path, reads))
        return _digest({file.name: digest for file, digest in zip(files, files_sha256(files), strict=True)})
    return str(path)


def matching(names: Iterable[str], reads: Sequence[str]) -> list[str]:
    """Those of the names that are read: that fit a pattern, or all where there is none."""
    return [name for name in names if not reads or any(fnmatchcase(name, pattern) for pattern in reads)]


def files_read(folder: Path, reads: Sequence[str]) -> list[Path]:
    """Files of a folder that no step made: those of a checkpoint, where a model is read of it, and Parquet."""
    whole_model = not reads or any(pattern.startswith(f"{MODEL}/") for pattern in reads)
    files = [file for file in folder.iterdir() if file.is_file()]
    of_model = [file for file in files if whole_model and file.suffix in _MODEL_SUFFIXES]
    return of_model + [file for file in files if file.suffix == ".parquet" and matching([file.name], reads)]


def _digest(parts: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
