"""Images as datasets hold them: bytes, or paths that stay inside the dataset's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.problems import EncodedImages
from stages.errors import RowError
from stages.importing.cells import Unfit

_REMEDIES = {
    "image_not_embedded": "only images that lie beside the data are read; download it and give the folder",
    "image_outside_folder": "lies outside the data's folder; copy it there",
    "image_not_found": "no such file; put it there, or drop the row",
    "image_over_limit": "too large; shrink it",
    "image_broken": "cannot be decoded; replace it",
}
_SHOWN = 300
"""Characters of a path that are told."""
MAX_BYTES = 64 << 20
"""An image of more is left out unread."""


class ImageReader:
    """Reads and checks images; `folder` is where their paths start, None where a dataset has no files here."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder.resolve() if folder is not None else None

    def read(self, value: Any) -> dict[str, Any]:
        """The encoded image of a cell (bytes, a path, or a struct that holds one of them), decoded once as a check.

        Raises:
            Unfit: `image_missing`, `image_not_embedded`, `image_outside_folder`, `image_not_found`,
                `image_over_limit` or `image_broken`.
        """
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path") or value.get("image")
        if isinstance(value, str) and value.strip():
            return self._read_file(value.strip().removeprefix("file://"))
        if not isinstance(value, bytes) or not value:
            raise Unfit("image_missing")
        _check(value)
        return {"bytes": value, "path": None}

    def _read_file(self, path: str) -> dict[str, Any]:
        """The image of a path, which names it in what is wrong with it."""
        try:
            encoded = self._load(path)
            _check(encoded)
        except Unfit as error:
            where = "" if self._folder is None else f" (from {self._folder})"
            raise Unfit(str(error), f"{path[:_SHOWN]}{where}: {_REMEDIES[str(error)]}") from error
        return {"bytes": encoded, "path": None}

    def _load(self, path: str) -> bytes:
        """The file's bytes; links are followed before it is decided whether it lies inside the folder."""
        if self._folder is None or "://" in path:
            raise Unfit("image_not_embedded")
        try:
            file = (self._folder / path).resolve()
            if not file.is_relative_to(self._folder):
                raise Unfit("image_outside_folder")
            if not file.is_file():
                raise Unfit("image_not_found")
            if file.stat().st_size > MAX_BYTES:
                raise Unfit("image_over_limit")
            return file.read_bytes()
        except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL, links in a circle
            raise Unfit("image_not_found") from error


def _check(encoded: bytes) -> None:
    if len(encoded) > MAX_BYTES:
        raise Unfit("image_over_limit")
    try:
        EncodedImages([{"bytes": encoded}], "import")[0]
    except RowError as error:
        raise Unfit("image_over_limit" if error.reason == "image_over_limit" else "image_broken") from error
