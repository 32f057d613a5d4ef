"""Problems with their images and videos, read from disk as they are needed."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from cachetools import LRUCache, cached
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.artifacts.bad_rows import BadRow, OnBadRow, refuse
from stages.artifacts.columns import IMAGE, PROBLEMS, TableSpec, null_message
from stages.artifacts.id_index import IdIndex, Ids
from stages.artifacts.rows import AnyRow
from stages.artifacts.store import open_parquet, parquet_files, read_group, reading
from stages.errors import DataError, RowError

PROBLEMS_AT_ONCE = 256
"""How many problems a stage holds that works through all of them."""
FILES_OPEN = 4
"""Files of problems that stay open: a footer takes long to read where it tells of many row groups."""
GROUPS_HELD = 4
"""Row groups of problems that stay in memory, or as many as `BYTES_HELD` have room for."""
IMAGES_HELD = 8
"""Images that stay decoded, or as many as `BYTES_HELD` have room for: stages look at the same problems in turn."""
BYTES_HELD = 64 << 20
"""Of row groups, and of decoded images."""
DEFAULT_FPS = 2.0
"""Rate of frames that come without one: what Qwen2.5-VL samples videos at."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What images are read as. Pillow knows many more; for some, as EPS, it runs other programs on what it was given."""
MAX_PIXELS = 50_000_000
"""An image of more is not decoded."""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `open_image` refuses what it warns of


class EncodedImages(Sequence[Image.Image]):
    """Images or frames, decoded when they are looked at, to be read only: thousands of problems fit in memory as they
    lie in the file. `place` names them in errors."""

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
            RowError: `image_missing`, `image_over_limit`, `image_undecodable`.
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
            RowError: `image_missing`, `image_over_limit`, `image_undecodable`, `frames_differ`.
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

    @classmethod
    def asking(cls, question: str, images: Sequence[Image.Image] = (), video: Video | None = None) -> Problem:
        """What a prompt shows, without an id or an answer."""
        return cls("", question, images, "", None, video, {})

    @property
    def is_visual(self) -> bool:
        """Whether there is anything to look at: an image or a video."""
        return len(self.images) > 0 or self.video is not None

    @property
    def choices(self) -> list[str] | None:
        """The texts of its choices A, B, …; None where it has none."""
        return self.extra.get("choices") or None

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


class _Group(NamedTuple):
    """A row group."""

    file: Path
    number: int
    """In its file."""
    first_row: int
    """Of its file."""


class ProblemSet:
    """Random access to problems by id; a few row groups of images in memory at a time."""

    def __init__(self, path: Path, spec: TableSpec[AnyRow] = PROBLEMS, on_bad_row: OnBadRow = "fail") -> None:
        """Index the file or folder.

        Bad rows, which are refused unless they are dropped: a null outside the images (`null_<column>`), no rate above
        0 (`no_frame_rate`), an id that stands twice (`duplicate_id`).

        Raises:
            DataError: wrong columns, a bad row, or no rows.
        """
        self.path = path
        self.bad: list[BadRow] = []
        self._spec = spec
        self._groups: list[_Group] = []
        self._largest_group = 1
        sizes: list[int] = []
        ids: list[pa.Array] = []
        usable: list[NDArray[np.bool_]] = []
        for file in parquet_files(path, spec):
            for group_ids, usable_G in self._read_ids(file):
                sizes.append(len(usable_G))
                ids.append(group_ids.filter(pa.array(usable_G)).cast(pa.string()))
                usable.append(usable_G)
        if not sum(sizes):
            raise DataError(f"{path}: no rows in it; {spec.name} is written by {spec.producer}")
        self._starts = np.cumsum([0, *sizes])
        self._places_N = np.flatnonzero(np.concatenate(usable)).astype(np.uint32)
        """Of each problem its row, counted over all files."""
        self._index = IdIndex(pa.chunked_array(ids, type=pa.string()))
        self._leave_out_repeats()
        refuse(self.bad, on_bad_row, path, left=len(self))
        self._open = lru_cache(maxsize=FILES_OPEN)(open_parquet)
        held = max(GROUPS_HELD, BYTES_HELD // self._largest_group)
        self._read_group = lru_cache(maxsize=held)(self._read_group_uncached)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, problem_id: str) -> bool:
        return self._index.find(problem_id) is not None

    def knows(self, problem_id: str) -> bool:
        """Whether the file has a problem of this id, a bad one that was left out too."""
        return problem_id in self or any(row.problem_id == problem_id for row in self.bad)

    def __iter__(self) -> Iterator[Problem]:
        return (self[problem_id] for problem_id in self.ids)

    @property
    def ids(self) -> Ids:
        return self._index.ids

    def __getitem__(self, problem_id: str) -> Problem:
        """The problem of this id.

        Raises:
            DataError: no such problem.
            RowError: `null_images`.
        """
        found = self._index.find(problem_id)
        if found is None:
            raise DataError(f"no problem {problem_id}; give the problems that the other inputs were made from")
        return self._at(found)

    def draw(self, count: int | None, seed: int) -> Ids:
        """Ids of `count` problems drawn without replacement, or of all in order."""
        if count is None or count >= len(self):
            return self.ids
        return self.ids.at(np.random.default_rng(seed).choice(len(self), count, replace=False))

    def many(self, problem_ids: Sequence[str]) -> list[Problem]:
        """These problems in this order; they are read in the order of the file."""
        numbers = [self._index.find(problem_id) for problem_id in problem_ids]
        found = {number: self._at(number) for number in self._in_file_order(numbers)}
        return [self[name] if n is None else found[n] for name, n in zip(problem_ids, numbers, strict=True)]

    def in_file_order(self, problem_ids: Iterable[str]) -> list[str]:
        """Those of the ids that are there."""
        return [self.ids[number] for number in self._in_file_order(map(self._index.find, problem_ids))]

    def only(self, problem_ids: Sequence[str], bad: Sequence[BadRow], on_bad_row: OnBadRow) -> ProblemSet:
        """These problems in this order, the bad ones refused or left out.

        Raises:
            DataError: one is bad and bad rows are refused, or none is left.
        """
        excluded = {row.problem_id for row in bad}
        names = (name for name in problem_ids if name not in excluded)
        numbers = (number for name in names if (number := self._index.find(name)) is not None)
        chosen = copy.copy(self)
        chosen.bad = [*self.bad, *bad]
        chosen._keep(np.fromiter(numbers, np.uint32))
        refuse(chosen.bad, on_bad_row, self.path, left=len(chosen))
        return chosen

    def _in_file_order(self, numbers: Iterable[int | None]) -> list[int]:
        return sorted({number for number in numbers if number is not None}, key=self._places_N.__getitem__)

    def _keep(self, numbers_N: NDArray[np.unsignedinteger[Any]]) -> None:
        self._index = IdIndex(pa.chunked_array([self._index.texts.take(pa.array(numbers_N))]))
        self._places_N = self._places_N[numbers_N]

    def _leave_out_repeats(self) -> None:
        repeats_N = self._index.repeats_N
        for number in repeats_N.tolist():
            file = self._groups[self._place(number)[0]].file
            message = f"{file}: problem_id {self.ids[number]} stands twice; ids join the artifacts, make them unique"
            self.bad.append(BadRow(self.ids[number], "duplicate_id", message))
        if len(repeats_N):
            self._keep(np.setdiff1d(np.arange(len(self), dtype=np.uint32), repeats_N))

    def _at(self, number: int) -> Problem:
        group, in_group = self._place(number)
        file, _, first_row = self._groups[group]
        row = self._read_group(group)[in_group]
        if row["images"] is None or None in row["images"]:
            raise RowError("null_images", null_message(f"{file} row {first_row + in_group}", "images"))
        return problem_of_row(row, f"{file} problem {self.ids[number]}")

    def _place(self, number: int) -> tuple[int, int]:
        """Row group, counted over all files, and row in it."""
        place = int(self._places_N[number])
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        return group, place - int(self._starts[group])

    def _read_ids(self, file: Path) -> Iterator[tuple[pa.Array, NDArray[np.bool_]]]:
        """Those of each row group, and which of its rows can be used."""
        light = [column.name for column in self._spec.columns if column.type != pa.list_(IMAGE)]
        first_row = 0
        with reading(file):
            parquet = open_parquet(file)
        for number in range(parquet.num_row_groups):
            with reading(file):
                table = self._spec.with_optional(read_group(parquet, number, light))
            ids, rates = table["problem_id"].combine_chunks(), table["fps"].to_pylist()
            bad = dict(self._bad_rows(ids, rates, self._spec.nulls(table), file, first_row))
            self.bad += [BadRow.of(ids[row].as_py() or f"row {first_row + row}", bad[row]) for row in sorted(bad)]
            usable_G = np.ones(len(table), dtype=bool)
            usable_G[list(bad)] = False
            self._groups.append(_Group(file, number, first_row))
            self._largest_group = max(self._largest_group, parquet.metadata.row_group(number).total_byte_size)
            first_row += len(table)
            yield ids, usable_G

    def _bad_rows(
        self, ids: pa.Array, rates: Sequence[float | None], nulls: Mapping[int, str], file: Path, first_row: int
    ) -> Iterator[tuple[int, RowError]]:
        for row, fps in enumerate(rates):
            if fps is not None and not 0 < fps < math.inf:
                message = f"{file} problem {ids[row]}: fps is {fps}; give the frames' rate, per second"
                yield row, RowError("no_frame_rate", message)
        for row, column in nulls.items():
            yield row, RowError(f"null_{column}", null_message(f"{file} row {first_row + row}", column))

    def _read_group_uncached(self, group: int) -> list[dict[str, Any]]:
        names = [column.name for column in self._spec.columns]
        file, number, _ = self._groups[group]
        with reading(file):
            table = self._spec.with_optional(read_group(self._open(file), number, names))
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows


def open_problems(path: Path, on_bad_row: OnBadRow) -> ProblemSet:
    """The problems of a file or folder, as this process has opened them before unless a file has changed since.

    Raises:
        DataError: as `ProblemSet`.
    """
    found = ((file, file.stat()) for file in parquet_files(path, PROBLEMS))
    stamps = tuple((file, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in found)
    return _opened_problems(path, on_bad_row, stamps)


@lru_cache(maxsize=2)
def _opened_problems(path: Path, on_bad_row: OnBadRow, _stamps: tuple[tuple[Path | int, ...], ...]) -> ProblemSet:
    """The problems to train on and those to validate with."""
    return ProblemSet(path, on_bad_row=on_bad_row)


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


def open_image(encoded: bytes) -> Image.Image:
    """An image whose pixels are not decoded yet.

    Raises:
        UnidentifiedImageError: it is in none of `IMAGE_FORMATS`.
        Image.DecompressionBombError: it has more than `MAX_PIXELS`.
        Exception: whatever Pillow's readers raise on broken bytes.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own limit is higher, and its words name that
        raise Image.DecompressionBombError(f"more than {MAX_PIXELS:,} pixels") from error
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels, at most {MAX_PIXELS:,} in all")
    return image


def _decode(image: dict[str, Any] | None, place: str) -> Image.Image:
    if image is None or not image.get("bytes"):
        raise RowError(
            "image_missing", f"{place}: no bytes; embed the image in the file (datasets: cast_column(..., Image()))"
        )
    return _decode_bytes(image["bytes"], place)


def _bytes_held(image: Image.Image) -> int:
    return min(3 * image.width * image.height, BYTES_HELD // IMAGES_HELD)


@cached(LRUCache(BYTES_HELD, getsizeof=_bytes_held), lock=Lock())
def _decode_bytes(encoded: bytes, place: str) -> Image.Image:
    try:
        return _to_rgb(ImageOps.exif_transpose(open_image(encoded)))
    except Image.DecompressionBombError as error:
        raise RowError("image_over_limit", f"{place}: {error}; shrink it or drop the row") from error
    except UnidentifiedImageError as error:  # its text holds an address
        raise RowError(
            "image_undecodable",
            f"{place}: cannot be decoded (none of {', '.join(IMAGE_FORMATS)}); replace it or drop the row",
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
