"""A step's files are still what its notes say of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stages.artifacts.digests import file_sha256, files_sha256
from stages.artifacts.fingerprint import files_read, matching
from stages.artifacts.manifests import MANIFEST, is_step, read_manifest
from stages.artifacts.store import check_parquet
from stages.errors import ArtifactError

_READ_BY_PATTERN = ("*.parquet", "model/*.safetensors")
"""Files that are found by their names, so that one too many would be taken for a part."""


Files = Mapping[str, Mapping[str, Any]]
"""By their names inside a folder, what `describe` says of each."""


def describe(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Files of a folder in bytes and hex SHA-256."""
    digests = files_sha256(folder / name for name in names)
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in zip(names, digests, strict=True)
    }


def find_damage(folder: Path, files: Files) -> list[str]:
    """Of the files that are not as they were described, the path and what is wrong with each.

    Raises:
        ArtifactError: one cannot be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda name: _damage(folder / name, files[name]), files)
        return [f"{folder / name}: {damage}" for name, damage in zip(files, found, strict=True) if damage]


def check_files(folder: Path, files: Files, part: str = "", reads: Sequence[str] = ()) -> None:
    """Compare files of a step's folder with `files`, the manifest's sizes and SHA-256.

    `part` limits the check to one file or subfolder of that name, `reads` to names that fit one of these patterns.
    Without either every file is checked. Without `part` a Parquet or weights file that the manifest lacks is refused:
    a reader would take it for a shard.

    Raises:
        ArtifactError: a file is missing, changed, unreadable or not in the manifest; names the first, and the remedy.
    """
    names = [name for name in matching(files, reads) if not part or f"{name}/".startswith(f"{part}/")]
    check_undamaged(folder, {name: files[name] for name in names})
    strangers = [] if part else sorted(set(matching(_read_by_pattern(folder), reads)) - files.keys())
    if strangers:
        raise ArtifactError(f"{folder / strangers[0]}: not in {MANIFEST}, but it would be read; move it elsewhere")


def check_undamaged(folder: Path, files: Files) -> None:
    """Compare these files with what the manifest says of them.

    Raises:
        ArtifactError: one is missing, changed or unreadable; names the first, and the remedy.
    """
    if damaged := find_damage(folder, files):
        others = f" (and {len(damaged) - 1} more of its files)" if damaged[1:] else ""
        raise ArtifactError(f"{damaged[0]}{others}; run the command that made it again with --overwrite")


def checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete step, whose files are what it says."""
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"])
    return manifest


def check_input(path: Path, reads: Sequence[str] = ()) -> None:
    """Check an input before anything is computed from it.

    Files of a step are compared with its manifest, whether `path` is the step's folder or a file in it. Elsewhere each
    Parquet file is read whole, which checks its pages. `reads` are patterns of the names that the command reads of a
    folder; without them it reads all.

    Raises:
        ArtifactError: the step is not complete, or a file of it is missing or changed.
        DataError: a Parquet file cannot be read.
    """
    if is_step(path):
        check_files(path, read_manifest(path)["files"], reads=reads)
    elif (path.parent / MANIFEST).is_file() and is_step(path.parent):
        check_files(path.parent, read_manifest(path.parent)["files"], path.name)
    else:
        for file in sorted(files_read(path, reads)) if path.is_dir() else [path]:
            if file.suffix == ".parquet" and file.is_file():
                check_parquet(file)


def _damage(file: Path, entry: Mapping[str, Any]) -> str | None:
    try:
        size = file.stat().st_size
        if size != entry["bytes"]:
            return f"{size} bytes instead of {entry['bytes']}"
        return None if file_sha256(file) == entry["sha256"] else "changed since it was written"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        raise ArtifactError(
            f"{file}: cannot be read ({error.strerror}); make it readable, or give a copy that is"
        ) from error


def _read_by_pattern(folder: Path) -> Iterator[str]:
    return (str(file.relative_to(folder)) for pattern in _READ_BY_PATTERN for file in folder.glob(pattern))
