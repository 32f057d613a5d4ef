"""A page to look at: errors and their repairs, marked tokens in colour, beside the images and frames."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from PIL import Image

from stages.untrusted.printable import told

STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60em; margin: 2em auto; color: #222; }
article { border-top: 1px solid #ddd; padding: 1em 0; }
img { image-rendering: pixelated; border: 1px solid #ddd; margin-right: .5em; }
p { margin: .3em 0; white-space: pre-wrap; overflow-wrap: anywhere; }
b { display: inline-block; width: 5em; font-weight: 600; color: #666; }
.error mark { background: #ffd0cc; color: #900; } .repair mark { background: #cdeccd; color: #060; }
"""

_OWN = """
h1 { font-size: 1.4em; } h2 { font-size: 1em; margin: 0 0 .4em; }
img { min-height: 56px; max-height: 112px; max-width: 100%; }
"""
_IMAGE, _FRAME = (448, 224), (224, 112)
"""Largest width and height; of an image twice what the page shows, for dense screens; a video has many frames."""


@dataclass(frozen=True)
class MarkedToken:
    """One token's text, and whether the difference mask has it."""

    text: str
    marked: bool


class Sample(NamedTuple):
    """A pair on the page of pairs."""

    title: str
    pair: PairView
    facts: Mapping[str, str]
    """What is told of it, by name."""


@dataclass(frozen=True)
class PairView:
    """An error, its selected repair, and the problem they answer."""

    question: str
    answer: str
    images: Sequence[Image.Image]
    frames: Sequence[Image.Image]
    error: Sequence[MarkedToken]
    repair: Sequence[MarkedToken]


def overlay_page(samples: Sequence[Sample]) -> str:
    """One HTML page that needs nothing beside it; texts of data sets and models are escaped."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Difference masks</title>"
        f"<style>{STYLE}{_OWN}</style><body>\n<h1>Difference masks</h1>"
        "<p>A pair of each of the first problems that have one. <span class='error'><mark>Red</mark></span>: what the "
        "mask marks in the error. <span class='repair'><mark>Green</mark></span>: what it marks in the repair.</p>\n"
        + "\n".join(map(_article, samples))
        + "\n</body></html>\n"
    )


def _article(sample: Sample) -> str:
    told = "; ".join(f"{name} {value}" for name, value in sample.facts.items())
    return (
        f"<article><h2>{text_html(sample.title)}</h2>{pair_html(sample.pair, _pictures(sample.pair))}"
        f"<p class='facts'>{text_html(told)}</p></article>"
    )


def policy_html(script: str) -> str:
    """The element of a page's head that lets the page load nothing and run no script but this one.

    `script` is the text between the tags of the page's script element, byte for byte.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f'<meta http-equiv="Content-Security-Policy" content="{policy}">'


def text_html(text: str) -> str:
    """Neither markup nor control characters."""
    return escape(told(text))


def pair_html(pair: PairView, pictures: Sequence[Image.Image]) -> str:
    """These pictures of the pair's problem, its question and answer, the error and the repair with their marks."""
    images = "".join(
        f"<img alt='picture {place} of {len(pictures)}' src='data:image/png;base64,{_png(image)}'>"
        for place, image in enumerate(pictures, 1)
    )
    return (
        f"{images}<p>{text_html(pair.question)} <i>({text_html(pair.answer)})</i></p>"
        f"<p class='error'><b>error</b>{tokens_html(pair.error)}</p>"
        f"<p class='repair'><b>repair</b>{tokens_html(pair.repair)}</p>"
    )


def tokens_html(tokens: Sequence[MarkedToken]) -> str:
    """The tokens one behind the other, the marked ones in `mark`."""
    return "".join(f"<mark>{text_html(t.text)}</mark>" if t.marked else text_html(t.text) for t in tokens)


def _pictures(pair: PairView) -> list[Image.Image]:
    """Its images and its frames, no larger than the page needs."""
    return [*(within(_IMAGE, image) for image in pair.images), *(within(_FRAME, frame) for frame in pair.frames)]


def within(size: tuple[int, int], picture: Image.Image) -> Image.Image:
    """The picture, no wider and no higher than this."""
    smaller = picture.copy()
    smaller.thumbnail(size)
    return smaller


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
