"""The gallery of a page: errors and repairs with their marks, filtered by lists, as many as there is room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from stages.artifacts.overlay import text_html, tokens_html
from stages.pages.chart import number
from stages.pages.pairs import MOST, Candidate, Pair, candidates, drawn, in_page_order, read_pairs
from stages.pages.room import Room, line_html, problem_html
from stages.pages.state import Source, where

SHOWN_AT_ONCE = 30
FILTERS = ("run", "variant", "seed", "round", "kind", "outcome", "category")
_OF_SEVERAL = ("run", "variant", "seed")
"""Nothing to choose where all pairs are of one."""
_LABELS = {
    "run": "Run",
    "variant": "Variant",
    "seed": "Seed",
    "round": "Round",
    "kind": "Kind",
    "outcome": "Outcome",
    "category": "Audit category",
}


def gallery(sources: Sequence[Source], room: Room) -> str:
    """A section of as many pairs as there is room for."""
    found = candidates(sources)
    if not found:
        return ""
    chosen = drawn(found)
    pairs, notes = read_pairs(sources, chosen)
    values = {pair.of: _values(pair, sources[pair.of.run]) for pair in pairs}
    numbers = {name: _numbered(of[name] for of in values.values()) for name in FILTERS}
    everything = [values[pair.of] for pair in pairs]
    # What stands around the pairs grows with their number.
    room.left -= len("".join(_frame(everything, len(found) + 1, notes, numbers)).encode())
    articles: dict[Candidate, str] = {}
    for pair in pairs:
        data = {name: numbers[name][value] for name, value in values[pair.of].items()}
        html = _article(pair, values[pair.of], data, where(sources, pair.of.run))
        article = room.take(sources[pair.of.run].name, pair.problem, html)
        if article is not None:
            articles[pair.of] = article
    shown = [pair for pair in in_page_order(pairs) if pair.of in articles]
    begin, end = _frame([values[pair.of] for pair in shown], len(found), notes, numbers)
    return f"{begin}{''.join(articles[pair.of] for pair in shown)}{end}"


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
        "that was not selected, the marks are those that it would have had. Of an error's repairs at most one is "
        "chosen; a costlier one is right too, but edits more; others are wrong, cut at the length limit, flagged by "
        "the auditor, or could not be scored or audited."
    )
    if shown == found:
        return f"All {found:,} pairs, the worst and the most edited first. {marks}"
    return (
        f"{shown:,} of {found:,} pairs, the worst and the most edited of each run, outcome, audit category and round; "
        f"{found - shown:,} are left out: at most {MOST:,} are shown, and no more than the file has room for. {marks}"
    )


def _values(pair: Pair, source: Source) -> dict[str, str]:
    """What the pair is filtered by, in words."""
    kind = pair.problem.kind if pair.problem else None
    verdict = {None: "no verdict", False: "not flagged", True: pair.of.category or "flagged"}[pair.of.flagged]
    of = (source.name, source.variant, source.seed)
    values = (*of, str(pair.of.round), kind or "no kind", pair.of.selection, verdict)
    return dict(zip(FILTERS, values, strict=True))


def _numbered(values: Iterable[str]) -> dict[str, int]:
    """Numbers stand for values in attributes: no text of anybody's does."""
    return {value: place for place, value in enumerate(dict.fromkeys(values))}


def _filters(numbers: Mapping[str, Mapping[str, int]], counts: Mapping[tuple[str, str], int]) -> str:
    lists = "".join(
        f"<label>{_LABELS[name]} <select name='{name}'><option value=''>all</option>"
        f"{_options(name, of, counts)}</select></label> "
        for name, of in numbers.items()
        if name not in _OF_SEVERAL or len(of) > 1
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


def _article(pair: Pair, values: Mapping[str, str], data: Mapping[str, int], begins: str) -> str:
    of = pair.of
    title = f"{begins}round {of.round}: {of.problem_id}, sample {of.sample}, repair {of.candidate}"
    reward = "none: could not be scored" if of.reward is None else number(of.reward)
    facts = [
        ("outcome", values["outcome"]), ("reward", reward), ("edit cost", number(of.cost)),
        ("auditor", values["category"]), ("kind", values["kind"]),
    ]  # fmt: skip
    facts += [("evidence", pair.evidence)] if pair.evidence else []
    told = "".join(f"<div><dt>{name}</dt><dd>{text_html(value)}</dd></div>" for name, value in facts)
    attributes = " ".join(f"data-{name}='{value}'" for name, value in data.items())
    return (
        f"<article class='pair' {attributes}><h3>{text_html(title)}</h3>{problem_html(pair.problem)}"
        f"{line_html('error', tokens_html(pair.error))}{line_html('repair', tokens_html(pair.repair))}"
        f"<dl>{told}</dl></article>\n"
    )
