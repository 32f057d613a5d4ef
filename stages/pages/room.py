"""What a page has room for: articles with the pictures of their problems, as many as its size allows."""

from __future__ import annotations

import base64
import io
from itertools import chain, islice

from PIL import Image

from stages.artifacts.overlay import text_html, within
from stages.artifacts.problems import Problem

_PICTURE = (480, 320)
"""Largest width and height: twice what the page shows, for dense screens."""
_PICTURES = 4
"""Shown of one problem; a video has many frames."""
_PNG_BYTES = 16 * 2**10
"""A picture that is larger than this as PNG is embedded as WebP, which loses some of it."""
_SMALLEST_HEIGHT = 56
_HERE = "<!--pictures-->"
"""Where an article has its pictures; no text of anybody's can hold it."""
_DEFINITIONS = "<svg class='pictures' width='0' height='0' aria-hidden='true'>{}</svg>"


class Room:
    """Bytes that are left for articles, and the pictures that these have, each once."""

    def __init__(self, size: int) -> None:
        self.left = size - len(_DEFINITIONS.format(""))
        self.pictures: dict[tuple[str, str], str] = {}
        self._definitions: list[str] = []

    @property
    def definitions(self) -> str:
        """The pictures, which the articles use by name."""
        pictures = "".join(self._definitions)
        return _DEFINITIONS.format(pictures) if pictures else ""

    def take(self, source: str, problem: Problem | None, article: str, spare: int = 0) -> str | None:
        """The article with its problem's pictures; None where it does not fit, or less than `spare` would be left.

        Within a `source` ids of problems are unique.
        """
        key = (source, "" if problem is None else problem.problem_id)
        uses, definitions = self.pictures.get(key), ""
        if uses is None:
            uses, definitions = ("", "") if problem is None else _pictures(problem, len(self.pictures))
        whole = article.replace(_HERE, uses, 1)
        size = len(whole.encode()) + len(definitions)
        if size > self.left - spare:
            return None
        self.left -= size
        self.pictures[key] = uses
        self._definitions.append(definitions)
        return whole


def problem_html(problem: Problem | None) -> str:
    """What an article shows of its problem: pictures, question and reference answer; nothing of one that is gone."""
    if problem is None:
        return ""
    return _HERE + line_html("question", text_html(problem.question)) + line_html("answer", text_html(problem.answer))


def line_html(name: str, html: str) -> str:
    """A line of an article."""
    return f"<p class='{name}'><b>{name}</b> <span>{html}</span></p>"


def _pictures(problem: Problem, place: int) -> tuple[str, str]:
    """What shows them, and what they are defined by."""
    frames = problem.video.frames if problem.video else []
    count = len(problem.images) + len(frames)
    uses = definitions = ""
    for index, picture in enumerate(islice(chain(problem.images, frames), _PICTURES)):
        small = within(_PICTURE, picture)
        scale = max(0.5, _SMALLEST_HEIGHT / small.height)
        width, height = (round(side * scale) for side in small.size)
        name = f"p{place}-{index}"
        definitions += f"<image id='{name}' width='{small.width}' height='{small.height}' href='{_uri(small)}'/>"
        uses += (
            f"<svg class='picture' role='img' aria-label='picture {index + 1} of {count} of the problem' "
            f"width='{width}' height='{height}' viewBox='0 0 {small.width} {small.height}'><use href='#{name}'/></svg>"
        )
    more = f"<span class='more'>and {count - _PICTURES} more</span>" if count > _PICTURES else ""
    return f"<div class='row'>{uses}{more}</div>" if count else "", definitions


def _uri(picture: Image.Image) -> str:
    """Encoded anew: nothing that a file carries beside its pixels is handed on."""
    for kind, options in (("png", {}), ("webp", {"quality": 80})):
        buffer = io.BytesIO()
        picture.save(buffer, format=kind, **options)
        if buffer.tell() <= _PNG_BYTES:
            break
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
