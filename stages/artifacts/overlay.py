"""A page to look at: errors and their repairs, marked tokens in colour, beside the images and frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

_STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60em; margin: 2em auto; color: #222; }
article { border-top: 1px solid #ddd; padding: 1em 0; }
img { height: 56px; image-rendering: pixelated; border: 1px solid #ddd; margin-right: .5em; }
p { margin: .3em 0; white-space: pre-wrap; overflow-wrap: anywhere; }
b { display: inline-block; width: 5em; font-weight: 600; color: #777; }
.error mark { background: #ffd0cc; color: #900; } .repair mark { background: #cdeccd; color: #060; }
"""

_FRAME = (224, 112)
"""Largest width and height: twice the height that the page shows, for dense screens."""


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


def overlay_page(pairs: Sequence[PairView]) -> str:
    """One HTML page that needs nothing beside it; every text that came from a data set or a model is escaped."""
    body = "\n".join(_article(pair) for pair in pairs)
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Difference masks</title>"
        f"<style>{_STYLE}</style><body>\n{body}\n</body></html>\n"
    )


def _article(pair: PairView) -> str:
    images = "".join(f"<img alt='' src='data:image/png;base64,{_png(image)}'>" for image in _pictures(pair))
    return (
        f"<article>{images}<p>{escape(pair.question)} <i>({escape(pair.answer)})</i></p>"
        f"<p class='error'><b>error</b>{_tokens(pair.error)}</p>"
        f"<p class='repair'><b>repair</b>{_tokens(pair.repair)}</p></article>"
    )


def _tokens(tokens: Sequence[MarkedToken]) -> str:
    return "".join(f"<mark>{escape(t.text)}</mark>" if t.marked else escape(t.text) for t in tokens)


def _pictures(pair: PairView) -> list[Image.Image]:
    """Its images, and its frames no larger than the page needs: a video has many."""
    frames = [frame.copy() for frame in pair.frames]
    for frame in frames:
        frame.thumbnail(_FRAME)
    return [*pair.images, *frames]


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
