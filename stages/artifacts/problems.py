"""Problems with their images and videos, read from disk as they are needed."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.artifacts.bad_rows import BadRow, OnBadRow, refuse
from stages.artifacts.columns import IMAGE, PROBLEMS, TableSpec, null_message
from stages.artifacts.store import parquet_files
from stages.errors import DataError, RowError

PROBLEMS_AT_ONCE = 256
"""How many problems a stage holds that works through all of them."""
DEFAULT_FPS = 2.0
"""Rate of frames that come without one: what Qwen2.5-VL samples videos at."""


class EncodedImages(Sequence[Image.Image]):
    """Images or frames, decoded each time they are looked at: thousands of problems fit in memory as they lie in the
    file. `place` names them in errors."""

    def __init__(self, encoded: Sequence[dict[str, Any]], place: str) -> None:
        self._encoded = encoded
        self._place = place

    def __len__(self) -> int:
        return len(self._encoded)

    @property
    def encoded(self) -> list[dict[str, Any]]:
        """The images as the `images` column has them."""
        return list(self._encoded)

    def __getitem__(self, index: Any) -> Any:
        """The decoded image, in RGB.

        Raises:
            RowError: `image_missing`, `image_undecodable`.
        """
        return _decode(self._encoded[index], f"{self._place} {index}")


@dataclass(frozen=True)
class Video:
    """Frames in order, taken as they are, and their rate per second."""

    frames: Sequence[Image.Image]
    fps: float
    place: str
    """Where it comes from, for errors."""

    def decoded(self) -> list[Image.Image]:
        """Its frames.

        Raises:
            RowError: `image_missing`, `image_undecodable`, `frames_differ`.
        """
        frames = list(self.frames)
        for index, frame in enumerate(frames):
            if frame.size != frames[0].size:
                found, first = (f"{width}x{height}" for width, height in (frame.size, frames[0].size))
                raise RowError(
                    "frames_differ",
                    f"{self.place} frame {index}: {found} pixels, frame 0 has {first}; give them one size",
                )
        return frames


@dataclass(frozen=True)
class Problem:
    """One row of `problems`."""

    problem_id: str
    question: str
    images: Sequence[Image.Image]
    answer: str
    kind: str | None
    video: Video | None
    extra: dict[str, Any]
    """Further columns of the file, as a repair set's `error` and `repair`."""
    whole: Problem | None = field(default=None, compare=False, repr=False)
    """The problem itself, where this one lacks its image: responses are scored by it."""

    @property
    def is_visual(self) -> bool:
        """Whether there is anything to look at: an image or a video."""
        return len(self.images) > 0 or self.video is not None

    @property
    def preferred(self) -> str | None:
        """A right response to it: a problem's `preferred`, or the `chosen` one of preference data."""
        return self.extra.get("preferred", self.extra.get("chosen"))

    def as_row(self) -> dict[str, Any]:
        """What a reward function is given: the images and the video (if any) are those of the whole problem."""
        whole = self.whole or self
        row = {
            "problem_id": self.problem_id,
            "question": self.question,
            "images": whole.images,
            "video": whole.video,
            "answer": self.answer,
            "kind": self.kind,
        }
        return row | self.extra


class _Place(NamedTuple):
    """Where a problem's row lies."""

    file: Path
    group: int
    in_group: int
    """Row of its row group."""
    row: int
    """Row of its file."""


class ProblemSet:
    """Random access to problems by id; one row group of images in memory at a time."""

    def __init__(self, path: Path, spec: TableSpec = PROBLEMS, on_bad_row: OnBadRow = "fail") -> None:
        """Index the file or folder.

        Bad rows, which are refused unless they are dropped: a null outside the images (`null_<column>`), an id that
        stands twice (`duplicate_id`), no rate above 0 (`no_frame_rate`).

        Raises:
            DataError: wrong columns, a bad row, or no rows.
        """
        self.path = path
        self.bad: list[BadRow] = []
        self._spec = spec
        self._rows: dict[str, _Place] = {}
        for file in parquet_files(path, spec):
            self._index(file)
        if not self._rows and not self.bad:
            raise DataError(f"{path}: no rows in it; {spec.name} is written by {spec.producer}")
        refuse(self.bad, on_bad_row, path, left=len(self._rows))
        self._read_group = lru_cache(maxsize=4)(self._read_group_uncached)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, problem_id: str) -> bool:
        return problem_id in self._rows

    def __iter__(self) -> Iterator[Problem]:
        return (self[problem_id] for problem_id in self._rows)

    @property
    def ids(self) -> list[str]:
        return list(self._rows)

    def __getitem__(self, problem_id: str) -> Problem:
        """The problem of this id.

        Raises:
            DataError: no such problem.
            RowError: `null_images`.
        """
        if problem_id not in self._rows:
            raise DataError(f"no problem {problem_id}; give the problems that the other inputs were made from")
        place = self._rows[problem_id]
        row = self._read_group(place.file, place.group)[place.in_group]
        if row["images"] is None or None in row["images"]:
            raise RowError("null_images", null_message(f"{place.file} row {place.row}", "images"))
        return problem_of_row(row, f"{place.file} problem {problem_id}")

    def draw(self, count: int | None, seed: int) -> list[str]:
        """Ids of `count` problems drawn without replacement, or of all in order."""
        if count is None or count >= len(self):
            return self.ids
        return [str(name) for name in np.random.default_rng(seed).choice(self.ids, count, replace=False)]

    def many(self, problem_ids: Sequence[str]) -> list[Problem]:
        """These problems in this order; they are read in the order of the file."""
        found = {problem_id: self[problem_id] for problem_id in self.in_file_order(problem_ids)}
        return [found[name] if name in found else self[name] for name in problem_ids]

    def in_file_order(self, problem_ids: Iterable[str]) -> list[str]:
        """Those of the ids that are there."""
        return sorted(self._rows.keys() & set(problem_ids), key=self._rows.__getitem__)

    def only(self, problem_ids: Sequence[str], bad: Sequence[BadRow], on_bad_row: OnBadRow) -> ProblemSet:
        """These problems in this order, the bad ones refused or left out.

        Raises:
            DataError: one is bad and bad rows are refused, or none is left.
        """
        excluded = {row.problem_id for row in bad}
        chosen = copy.copy(self)
        chosen.bad = [*self.bad, *bad]
        chosen._rows = {name: self._rows[name] for name in problem_ids if name not in excluded}
        refuse(chosen.bad, on_bad_row, self.path, left=len(chosen))
        return chosen

    def _index(self, file: Path) -> None:
        parquet = pq.ParquetFile(file)
        light = [column.name for column in self._spec.columns if column.type != pa.list_(IMAGE)]
        first_row = 0
        for group in range(parquet.num_row_groups):
            table = self._spec.with_optional(parquet.read_row_group(group, columns=light))
            nulls = self._spec.nulls(table)
            ids, rates = table["problem_id"].to_pylist(), table["fps"].to_pylist()
            for index, (problem_id, fps) in enumerate(zip(ids, rates, strict=True)):
                place = _Place(file, group, index, first_row + index)
                try:
                    self._add(place, problem_id, fps, nulls.get(index))
                except RowError as error:
                    self.bad.append(BadRow.of(problem_id or f"row {place.row}", error))
            first_row += len(table)

    def _add(self, place: _Place, problem_id: str, fps: float | None, null_column: str | None) -> None:
        if null_column is not None:
            raise RowError(f"null_{null_column}", null_message(f"{place.file} row {place.row}", null_column))
        if fps is not None and not 0 < fps < math.inf:
            raise RowError(
                "no_frame_rate",
                f"{place.file} problem {problem_id}: fps is {fps}; give the frames' rate, per second",
            )
        if problem_id in self._rows:
            raise RowError(
                "duplicate_id",
                f"{place.file}: problem_id {problem_id} stands twice; ids join the artifacts, make them unique",
            )
        self._rows[problem_id] = place

    def _read_group_uncached(self, file: Path, group: int) -> list[dict[str, Any]]:
        names = [column.name for column in self._spec.columns]
        table = self._spec.with_optional(pq.ParquetFile(file).read_row_group(group, columns=names))
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows


def problem_of_row(row: Mapping[str, Any], place: str) -> Problem:
    """A problem from a row of `problems` or of an artifact that has its columns; `place` names it in errors."""
    extra = dict(row)
    images = EncodedImages(extra.pop("images"), f"{place} image")
    video = _video(extra.pop("video"), extra.pop("fps"), place)
    named = {name: extra.pop(name) for name in ("problem_id", "question", "answer", "kind")}
    return Problem(images=images, video=video, extra=extra, **named)


def _video(frames: list[dict[str, Any]] | None, fps: float | None, place: str) -> Video | None:
    if not frames:
        return None
    return Video(EncodedImages(frames, f"{place} frame"), DEFAULT_FPS if fps is None else fps, place)


def _decode(image: dict[str, Any] | None, place: str) -> Image.Image:
    if image is None or not image.get("bytes"):
        raise RowError(
            "image_missing", f"{place}: no bytes; embed the image in the file (datasets: cast_column(..., Image()))"
        )
    try:
        return _to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(image["bytes"]))))
    except UnidentifiedImageError as error:  # its text holds an address
        raise RowError(
            "image_undecodable",
            f"{place}: cannot be decoded (in no format that Pillow knows); replace it or drop the row",
        ) from error
    except Exception as error:  # PIL's readers raise anything on broken bytes
        raise RowError(
            "image_undecodable", f"{place}: cannot be decoded ({error}); replace it or drop the row"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """As a viewer shows it: transparent parts on white, 16-bit greys scaled. PIL would blacken and clip them.

    Raises ValueError for 32-bit greys.
    """
    if image.mode in ("I", "F"):
        raise ValueError("nobody knows which of its 32-bit values is white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256).convert("L")
    return image.convert("RGB")


def encoded_images(images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Images in the layout of the `images` column: as they lie in their file, or as PNGs if they come from nowhere."""
    return images.encoded if isinstance(images, EncodedImages) else [encode_image(image) for image in images]


def encode_image(image: Image.Image) -> dict[str, Any]:
    """A PNG in the layout of the `images` column."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return {"bytes": buffer.getvalue(), "path": None}
