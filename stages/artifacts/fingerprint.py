"""What an input is, told from its bytes."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from stages.artifacts.notes import is_step, read_manifest

_MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model", ".py"}


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """Hex SHA-256 over what a stage reads: a file, a finished step's outputs, or the files of a model folder.

    Timings in a step's manifest do not count: a step that made the same bytes again is the same input. A path that
    is not on this machine (a hub name) is its own fingerprint.

    Raises:
        ArtifactError: a step that is not complete.
    """
    if path.is_file():
        return file_sha256(path)
    if is_step(path):
        files = read_manifest(path)["files"]
        return _digest({name: entry["sha256"] for name, entry in files.items()})
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _MODEL_SUFFIXES or file.suffix == ".parquet")
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing lets go of the interpreter
            digests = threads.map(file_sha256, files)
            return _digest({file.name: digest for file, digest in zip(files, digests, strict=True)})
    return str(path)


def _digest(parts: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
