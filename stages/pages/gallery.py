"""The gallery of a page: errors and repairs with their marks, filtered by lists, as many as there is room for."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice

from PIL import Image

from stages.artifacts.overlay import text_html, tokens_html, within
from stages.artifacts.problems import Problem
from stages.pages.chart import number
from stages.pages.pairs import MOST, Candidate, Pair, candidates, drawn, in_page_order, read_pairs
from stages.pages.state import RunState

SHOWN_AT_ONCE = 30
_PICTURE = (480, 320)
"""Largest width and height: twice what the page shows, for dense screens."""
_PICTURES = 4
"""Shown of one problem; a video has many frames."""
_PNG_BYTES = 16 * 2**10
"""A picture that is larger than this as PNG is embedded as WebP, which loses some of it."""
_SMALLEST_HEIGHT = 56
FILTERS = ("run", "round", "kind", "outcome", "category")
_LABELS = {"run": "Run", "round": "Round", "kind": "Kind", "outcome": "Outcome", "category": "Audit category"}


_DEFINITIONS = "<svg class='pictures' width='0' height='0' aria-hidden='true'>{}</svg>"


class Room:
    """Bytes that are left for the gallery, and the pictures that it has, each once."""

    def __init__(self, size: int) -> None:
        self.left = size - len(_DEFINITIONS.format(""))
        self.pictures: dict[tuple[int, str], str] = {}
        self._definitions: list[str] = []

    @property
    def definitions(self) -> str:
        """The pictures, which the articles use by name."""
        return _DEFINITIONS.format("".join(self._definitions))

    def take(self, run: int, problem: Problem | None, article: str) -> str | None:
        """The article with its problem's pictures; None where it does not fit."""
        key = (run, "" if problem is None else problem.problem_id)
        uses, definitions = self.pictures.get(key), ""
        if uses is None:
            uses, definitions = ("", "") if problem is None else _pictures(problem, len(self.pictures))
        whole = article.replace("<!--pictures-->", uses, 1)
        size = len(whole.encode()) + len(definitions)
        if size > self.left:
            return None
        self.left -= size
        self.pictures[key] = uses
        self._definitions.append(definitions)
        return whole


def gallery(states: Sequence[RunState], names: Sequence[str], size: int) -> str:
    """A section of at most about `size` bytes of UTF-8."""
    found = candidates(states)
    if not found:
        return ""
    chosen = drawn(found)
    pairs, notes = read_pairs(states, chosen)
    values = {pair.of: _values(pair, names) for pair in pairs}
    numbers = {name: _numbered(of[name] for of in values.values()) for name in FILTERS}
    everything = [values[pair.of] for pair in pairs]
    # What stands around the pairs grows with their number.
    room = Room(size - len("".join(_frame(everything, len(found) + 1, notes, numbers)).encode()))
    articles: dict[Candidate, str] = {}
    for pair in pairs:
        data = {name: numbers[name][value] for name, value in values[pair.of].items()}
        article = room.take(pair.of.run, pair.problem, _article(pair, values[pair.of], data, len(states) > 1))
        if article is not None:
            articles[pair.of] = article
    shown = [pair for pair in in_page_order(pairs) if pair.of in articles]
    begin, end = _frame([values[pair.of] for pair in shown], len(found), notes, numbers)
    return f"{begin}{room.definitions}{''.join(articles[pair.of] for pair in shown)}{end}"


def _frame(
    shown: Sequence[Mapping[str, str]], found: int, notes: Sequence[str], numbers: Mapping[str, Mapping[str, int]]
) -> tuple[str, str]:
    """What stands before the pairs and behind them; `shown` are the values that each is filtered by."""
    counts = Counter(item for values in shown for item in values.items())
    return (
        f"<section id='gallery'><h2>Errors and their repairs</h2><p>{text_html(_told(len(shown), found))}</p>"
        f"{''.join(f'<p>{text_html(note)}</p>' for note in notes)}{_filters(numbers, counts)}",
        f"<p><button type='button' id='more' hidden>Show {SHOWN_AT_ONCE} more</button></p></section>",
    )


def _told(shown: int, found: int) -> str:
    marks = (
        "Red: what the difference mask marks in the error. Green: what it marks in the repair. Of a repair "
        "that was not selected, the marks are those that it would have had."
    )
    if shown == found:
        return f"All {found:,} pairs, the worst and the most edited first. {marks}"
    return (
        f"{shown:,} of {found:,} pairs, the worst and the most edited of each round, outcome and audit category; "
        f"{found - shown:,} are left out: at most {MOST:,} are shown, and no more than the file has room for. {marks}"
    )


def _values(pair: Pair, names: Sequence[str]) -> dict[str, str]:
    """What the pair is filtered by, in words."""
    kind = pair.problem.kind if pair.problem else None
    verdict = {None: "no verdict", False: "not flagged", True: pair.of.category or "flagged"}[pair.of.flagged]
    values = (names[pair.of.run], str(pair.of.round), kind or "no kind", pair.of.selection, verdict)
    return dict(zip(FILTERS, values, strict=True))


def _numbered(values: Iterable[str]) -> dict[str, int]:
    """Numbers stand for values in attributes: no text of anybody's does."""
    return {value: place for place, value in enumerate(dict.fromkeys(values))}


def _filters(numbers: Mapping[str, Mapping[str, int]], counts: Mapping[tuple[str, str], int]) -> str:
    lists = "".join(
        f"<label>{_LABELS[name]} <select name='{name}'><option value=''>all</option>"
        f"{_options(name, of, counts)}</select></label> "
        for name, of in numbers.items()
        if name != "run" or len(of) > 1
    )
    return (
        f"<form id='filters' hidden>{lists}<button type='reset'>Show all</button> "
        "<output id='matches' aria-live='polite'></output></form>"
    )


def _options(name: str, of: Mapping[str, int], counts: Mapping[tuple[str, str], int]) -> str:
    shown = [value for value in of if counts[name, value]]
    order = sorted(shown, key=lambda value: (not value.isdigit(), int(value) if value.isdigit() else 0, value))
    return "".join(
        f"<option value='{of[value]}'>{text_html(value)} ({counts[name, value]})</option>" for value in order
    )


def _article(pair: Pair, values: Mapping[str, str], data: Mapping[str, int], several: bool) -> str:
    of, problem = pair.of, pair.problem
    where = f"{values['run']}, " if several else ""
    title = f"{where}round {of.round}: {of.problem_id}, sample {of.sample}, repair {of.candidate}"
    question = "" if problem is None else _line("question", text_html(problem.question))
    answer = "" if problem is None else _line("answer", text_html(problem.answer))
    reward = "none: could not be scored" if of.reward is None else number(of.reward)
    facts = [
        ("outcome", values["outcome"]), ("reward", reward), ("edit cost", number(of.cost)),
        ("auditor", values["category"]), ("kind", values["kind"]),
    ]  # fmt: skip
    facts += [("evidence", pair.evidence)] if pair.evidence else []
    told = "".join(f"<div><dt>{name}</dt><dd>{text_html(value)}</dd></div>" for name, value in facts)
    attributes = " ".join(f"data-{name}='{value}'" for name, value in data.items())
    return (
        f"<article class='pair' {attributes}><h3>{text_html(title)}</h3><!--pictures-->{question}{answer}"
        f"{_line('error', tokens_html(pair.error))}{_line('repair', tokens_html(pair.repair))}"
        f"<dl>{told}</dl></article>\n"
    )


def _line(name: str, html: str) -> str:
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
