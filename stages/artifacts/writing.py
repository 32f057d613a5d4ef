"""Files written so that what is there is whole, and what the file system refuses is told."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stages.errors import ArtifactError

PARTIAL = ".partial"
"""Ends the name of a file that is still being written."""
_ROOM = "make room there"
_ELSEWHERE = "make it writable, or give another --out"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EEXIST: _ELSEWHERE,
    errno.ENOTDIR: _ELSEWHERE,
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the file system refuses while a file or a folder is written, as our error; nothing else may happen inside.

    Raises:
        ArtifactError: names it, and what to do.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _number(error)
        reason = str(error) if number is None else os.strerror(number)
        remedy = _REMEDIES.get(number or 0, "see to its file system")
        raise ArtifactError(
            f"{path}: cannot be written ({reason}); {remedy}, then give the same command again: it goes on from what "
            "is whole"
        ) from error


def _number(error: OSError | SafetensorError) -> int | None:
    """The system's number of what went wrong, which safetensors puts into its words."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"os error (\d+)", str(error))
    return None if told is None else int(told[1])


def replace(written: Path, path: Path) -> None:
    """Give a file that is whole its name; it is on the disk before it has it.

    Raises:
        ArtifactError: as `writing`.
    """
    with writing(path):
        to_disk(written)
    rename(written, path)


def rename(whole: Path, path: Path) -> None:
    """Give a file that is on the disk another name.

    Raises:
        ArtifactError: as `writing`.
    """
    with writing(path):
        os.replace(whole, path)


def link(place: Path, target: Path) -> None:
    """Put a link to a folder in the place of the one that is there, at once; `target` is relative to `place.parent`.

    Raises:
        ArtifactError: as `writing`.
    """
    new = place.with_name(f"{place.name}.new")
    with writing(place):
        new.unlink(missing_ok=True)
        new.symlink_to(target, target_is_directory=True)
        new.replace(place)


def to_disk(file: Path) -> None:
    """Wait until what was written of a file is on the disk, where a loss of power leaves it."""
    with file.open("rb") as written:
        os.fsync(written.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a file that appears only when it is complete.

    Raises:
        ArtifactError: as `writing`.
    """
    partial = path.with_name(path.name + PARTIAL)
    with writing(path):
        partial.write_text(text, encoding="utf-8")
    replace(partial, path)
