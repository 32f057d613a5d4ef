"""Verdicts that were had, on disk: nobody pays for one twice."""

from __future__ import annotations

import os
import time
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from stages.artifacts.columns import Column, TableSpec
from stages.artifacts.rows import AnyRow
from stages.artifacts.store import iterate_rows, write_rows
from stages.errors import DataError

VERDICTS: TableSpec[AnyRow] = TableSpec(
    "verdicts",
    "a served judge or auditor",
    "its next run",
    (
        Column("key", pa.string(), "SHA-256 of model, prompt, pictures, data and sampling parameters"),
        Column("model", pa.string(), "the served model's name"),
        Column("prompt", pa.string(), "version of the instructions: a hash of them and of the reply's schema"),
        Column("reply", pa.string(), "the reply, JSON of that schema"),
    ),
)
FLUSH_S = 10.0
"""Seconds of verdicts that a killed process loses at most."""
ROWS_PER_FILE = 4096


def default_folder() -> Path:
    """In the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "difference-feedback" / "verdicts"


class VerdictCache:
    """The verdicts of one model on one prompt. Processes may share a folder: each writes files of its own.

    A file grows by being written again, whole, while verdicts come in.
    """

    def __init__(self, folder: Path, model: str, prompt: str) -> None:
        """Read what is there.

        Raises:
            DataError: a file in it is not what this wrote.
        """
        self._folder = folder
        self._model = model
        self._prompt = prompt
        self._replies: dict[str, str] = {}
        self._rows: list[dict[str, str]] = []
        self._rows_on_disk = 0
        self._begin_file()
        if any(folder.glob(f"{VERDICTS.name}-*.parquet")):
            rows = iterate_rows(folder, VERDICTS)
            self._replies = {r["key"]: r["reply"] for r in rows if (r["model"], r["prompt"]) == (model, prompt)}

    def get(self, key: str) -> str | None:
        """The reply, if it was had before."""
        return self._replies.get(key)

    def add(self, key: str, reply: str) -> None:
        """Keep a reply; it is on disk within `FLUSH_S` of the next one's coming, or after `flush`."""
        self._replies[key] = reply
        self._rows.append({"key": key, "model": self._model, "prompt": self._prompt, "reply": reply})
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet.

        Raises:
            DataError: it cannot be written.
        """
        self._flushed = time.monotonic()
        if len(self._rows) == self._rows_on_disk:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_rows(self._file, VERDICTS, self._rows)
        except OSError as error:
            raise DataError(f"{self._folder}: {error}; make room, or name another folder as the cache") from error
        self._rows_on_disk = len(self._rows)
        if self._rows_on_disk >= ROWS_PER_FILE:
            self._begin_file()

    def _begin_file(self) -> None:
        self._file = self._folder / f"{VERDICTS.name}-{uuid4().hex}.parquet"
        self._rows, self._rows_on_disk = [], 0
        self._flushed = time.monotonic()
