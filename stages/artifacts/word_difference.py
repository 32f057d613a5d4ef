"""What a repair changed, word by word, for people to read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stages.artifacts.overlay import MarkedToken
from stages.core.alignment import difference_masks, edit_script

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


def difference_text(error: str, repair: str) -> str:
    """One text of both, as `wdiff` writes it: `1 + 2 = [-4-]{+3+}`."""
    error_words, repair_words = _words(error), _words(repair)
    parts = []
    for edit in edit_script(*_numbered(error_words, repair_words)):
        removed = "".join(error_words[edit.i1 : edit.i2])
        added = "".join(repair_words[edit.j1 : edit.j2])
        if edit.tag == "equal":
            parts.append(removed)
        else:
            parts += [f"[-{removed}-]"] * bool(removed) + [f"{{+{added}+}}"] * bool(added)
    return "".join(parts)


def marked_words(error: str, repair: str) -> tuple[list[MarkedToken], list[MarkedToken]]:
    """The words of each, marked where the other differs."""
    error_words, repair_words = _words(error), _words(repair)
    masks = difference_masks(*_numbered(error_words, repair_words), anchor_gaps=False)
    return _marked(error_words, masks.error_T.tolist()), _marked(repair_words, masks.repair_T.tolist())


def _words(text: str) -> list[str]:
    """Words, runs of white space, and single other characters: together they are the text."""
    return _WORDS.findall(text)


def _numbered(error: Sequence[str], repair: Sequence[str]) -> tuple[list[int], list[int]]:
    """Words as numbers, the same one for the same word."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys([*error, *repair]))}
    return [numbers[word] for word in error], [numbers[word] for word in repair]


def _marked(words: Sequence[str], mask: Sequence[bool]) -> list[MarkedToken]:
    return [MarkedToken(word, marked) for word, marked in zip(words, mask, strict=True)]
