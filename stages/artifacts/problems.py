"""Problems with their images and videos, read from disk as they are needed."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from stages.artifacts.columns import IMAGE, PROBLEMS, TableSpec
from stages.artifacts.store import open_parquet, parquet_files, read_group, reading
from stages.errors import DataError

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
            DataError: it is null or cannot be decoded.
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
            DataError: they differ in size.
        """
        frames = list(self.frames)
        for index, frame in enumerate(frames):
            if frame.size != frames[0].size:
                found, first = (f"{width}x{height}" for width, height in (frame.size, frames[0].size))
                raise DataError(f"{self.place} frame {index}: {found} pixels, frame 0 has {first}; give them one size")
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


class ProblemSet:
    """Random access to problems by id; one row group of images in memory at a time."""

    def __init__(self, path: Path, spec: TableSpec = PROBLEMS) -> None:
        """Index the file or folder.

        Raises:
            DataError: wrong columns, a null outside the images, an id that stands twice, or no rate above 0.
        """
        self._spec = spec
        self._rows: dict[str, tuple[Path, int, int]] = {}
        for file in parquet_files(path, spec):
            self._index(file)
        if not self._rows:
            raise DataError(f"{path}: no rows in it; {spec.name} is written by {spec.producer}")
        self._read_group = lru_cache(maxsize=4)(self._read_group_uncached)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Problem]:
        return (self[problem_id] for problem_id in self._rows)

    @property
    def ids(self) -> list[str]:
        return list(self._rows)

    def __getitem__(self, problem_id: str) -> Problem:
        """The problem of this id.

        Raises:
            DataError: no such problem.
        """
        if problem_id not in self._rows:
            raise DataError(f"no problem {problem_id}; give the problems that the other inputs were made from")
        file, group, index = self._rows[problem_id]
        return problem_of_row(self._read_group(file, group)[index], f"{file} problem {problem_id}")

    def draw(self, count: int | None, seed: int) -> list[str]:
        """Ids of `count` problems drawn without replacement, or of all in order."""
        if count is None or count >= len(self):
            return self.ids
        return [str(name) for name in np.random.default_rng(seed).choice(self.ids, count, replace=False)]

    def many(self, problem_ids: Sequence[str]) -> list[Problem]:
        """These problems in this order; they are read in the order of the file."""
        in_file = sorted(set(problem_ids) & self._rows.keys(), key=self._rows.__getitem__)
        found = {problem_id: self[problem_id] for problem_id in in_file}
        return [found[name] if name in found else self[name] for name in problem_ids]

    def _index(self, file: Path) -> None:
        light = [column.name for column in self._spec.columns if column.type != pa.list_(IMAGE)]
        first_row = 0
        with reading(file):
            parquet = open_parquet(file)
        for group in range(parquet.num_row_groups):
            with reading(file):
                table = self._spec.with_optional(read_group(parquet, group, light))
            self._spec.check_nulls(table, str(file), first_row)
            first_row += len(table)
            ids, rates = table["problem_id"].to_pylist(), table["fps"].to_pylist()
            for index, (problem_id, fps) in enumerate(zip(ids, rates, strict=True)):
                if fps is not None and not 0 < fps < math.inf:
                    raise DataError(f"{file} problem {problem_id}: fps is {fps}; give the frames' rate, per second")
                if problem_id in self._rows:
                    raise DataError(
                        f"{file}: problem_id {problem_id} stands twice; ids join the artifacts, make them unique"
                    )
                self._rows[problem_id] = (file, group, index)

    def _read_group_uncached(self, file: Path, group: int) -> list[dict[str, Any]]:
        names = [column.name for column in self._spec.columns]
        with reading(file):
            parquet = open_parquet(file)
            table = self._spec.with_optional(read_group(parquet, group, names))
            first_row = sum(parquet.metadata.row_group(earlier).num_rows for earlier in range(group))
        self._spec.check_nulls(table, str(file), first_row)
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
        raise DataError(f"{place}: no bytes; embed the image in the file (datasets: cast_column(..., Image()))")
    try:
        return _to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(image["bytes"]))))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}: cannot be decoded ({error}); replace it or drop the row") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """As a viewer shows it: transparent parts on white, 16-bit greys scaled. PIL would blacken and clip them."""
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
