"""Hex SHA-256 of files, each read once: a file whose place, size and times are the same has the same bytes.

What was found is remembered while the process lives, and where the environment variable `DF_DIGESTS` names a file, by
every command of that run: the base model of a run of three rounds is an input of ten commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

DIGESTS = "DF_DIGESTS"
"""Environment variable: a file of a run's folder, made where it is not there."""
SETTLED_NS = 2 * 10**9
"""Nanoseconds that a file must have rested before its digest is remembered.

A file system's clock ticks coarsely: a file changed twice within a tick keeps its time, and a digest remembered in
between would be wrong.
"""
WRITTEN_FROM = 1 << 20
"""Smallest file, in bytes, whose digest is written to the run's file; to hash a smaller one again is as fast."""

RESTED_FROM = 1 << 32
"""Smallest file, in bytes, that is let rest so long before it is hashed: to hash it a second time takes longer."""


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        _let_rest(os.fstat(file.fileno()))
        began = time.time_ns()
        found = os.fstat(file.fileno())
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = _known(os.environ.get(DIGESTS))
        if key in known:
            return known[key]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if max(found.st_mtime_ns, found.st_ctime_ns) < began - SETTLED_NS:
        known[key] = digest
        if found.st_size >= WRITTEN_FROM:
            _write(key, digest)
    return digest


def files_sha256(paths: Iterable[Path]) -> list[str]:
    """The same of several files at once: hashing lets go of the interpreter."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(file_sha256, paths))


def _let_rest(found: os.stat_result) -> None:
    if found.st_size >= RESTED_FROM:
        left = max(found.st_mtime_ns, found.st_ctime_ns) + SETTLED_NS - time.time_ns()
        time.sleep(max(0, min(left, SETTLED_NS)) / 10**9)  # a file server's clock may be ahead


Key = tuple[int, ...]
_told_nobody: set[str] = set()


def write_nothing() -> None:
    """From here on this process reads the run's file and adds nothing to it."""
    _told_nobody.add(os.environ.get(DIGESTS, ""))


@cache
def _known(written: str | None) -> dict[Key, str]:
    """What this process knows, beginning with what the run's file tells."""
    known: dict[Key, str] = {}
    if written is not None and Path(written).is_file():
        for line in Path(written).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):  # of a line that was cut off
                *key, digest = json.loads(line)
                known[tuple(key)] = digest
    return known


def _write(key: Key, digest: str) -> None:
    """One line for later commands; in a place that takes none they hash again."""
    written = os.environ.get(DIGESTS)
    if written is not None and written not in _told_nobody:
        with suppress(OSError), Path(written).open("a", encoding="utf-8") as file:
            file.write(json.dumps([*key, digest]) + "\n")
