"""A page to look at: errors and their repairs, marked tokens in colour, beside the images and frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from PIL import Image

from stages.untrusted.printable import told

_STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60em; margin: 2em auto; color: #222; }
article { border-top: 1px solid #ddd; padding: 1em 0; }
img { image-rendering: pixelated; border: 1px solid #ddd; margin-right: .5em; }
p { margin: .3em 0; white-space: pre-wrap; overflow-wrap: anywhere; }
b { display: inline-block; width: 5em; font-weight: 600; color: #777; }
.error mark { background: #ffd0cc; color: #900; } .repair mark { background: #cdeccd; color: #060; }
"""

_FRAME = (224, 112)
"""Largest width and height: twice the height that the page shows, for dense screens."""
_LARGE_PICTURE = (960, 480)
"""Largest width and height on a page with large pictures: what it shows."""
_SMALL, _LARGE = "img { height: 56px; }", "img { min-height: 56px; max-width: 100%; }"


@dataclass(frozen=True)
class MarkedToken:
    """One token's text, and whether the difference mask has it."""

    text: str
    marked: bool


@dataclass(frozen=True)
class PairView:
    """An error, its selected repair, and the problem they answer."""

    question: str
    answer: str
    images: Sequence[Image.Image]
    frames: Sequence[Image.Image]
    error: Sequence[MarkedToken]
    repair: Sequence[MarkedToken]
    name: str | None = field(default=None, kw_only=True)
    """A line above it."""


def overlay_page(
    pairs: Sequence[PairView],
    *,
    title: str = "Difference masks",
    notes: Sequence[str] = (),
    large_pictures: bool = False,
) -> str:
    """One HTML page that needs nothing beside it; texts of data sets and models are escaped.

    `notes` are paragraphs at its top.
    """
    head = [f"<p>{text_html(note)}</p>" for note in notes]
    body = "\n".join([*head, *(_article(pair, large_pictures) for pair in pairs)])
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{text_html(title)}</title>"
        f"<style>{_STYLE}{_LARGE if large_pictures else _SMALL}</style><body>\n{body}\n</body></html>\n"
    )


def text_html(text: str) -> str:
    """Neither markup nor control characters."""
    return escape(told(text))


def _article(pair: PairView, large_pictures: bool) -> str:
    pictures = _large_pictures(pair) if large_pictures else _pictures(pair)
    images = "".join(f"<img alt='' src='data:image/png;base64,{_png(image)}'>" for image in pictures)
    name = "" if pair.name is None else f"<p><i>{text_html(pair.name)}</i></p>"
    return (
        f"<article>{name}{images}<p>{text_html(pair.question)} <i>({text_html(pair.answer)})</i></p>"
        f"<p class='error'><b>error</b>{tokens_html(pair.error)}</p>"
        f"<p class='repair'><b>repair</b>{tokens_html(pair.repair)}</p></article>"
    )


def tokens_html(tokens: Sequence[MarkedToken]) -> str:
    """The tokens one behind the other, the marked ones in `mark`."""
    return "".join(f"<mark>{text_html(t.text)}</mark>" if t.marked else text_html(t.text) for t in tokens)


def _pictures(pair: PairView) -> list[Image.Image]:
    """Its images, and its frames no larger than the page needs: a video has many."""
    return [*pair.images, *(within(_FRAME, frame) for frame in pair.frames)]


def _large_pictures(pair: PairView) -> list[Image.Image]:
    return [within(_LARGE_PICTURE, picture) for picture in (*pair.images, *pair.frames)]


def within(size: tuple[int, int], picture: Image.Image) -> Image.Image:
    """The picture, no wider and no higher than this."""
    smaller = picture.copy()
    smaller.thumbnail(size)
    return smaller


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
