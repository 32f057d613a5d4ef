"""Where a text states its final answer, and how that answer reads. Pure functions; nothing is evaluated.

A final answer is the last ``\\boxed{...}`` or ``<answer>...</answer>``; without either, what follows the last "answer
is" or "Answer:" up to the end of its sentence or line, or the formula displayed there. A sentence that only comments on
the answer ("This answer is consistent with the figure.") states none, nor does one that supposes it ("If the answer is
42") or that the next takes back ("Wait, ..."). There is no further way: a text without these has no final answer, and
a text with two conflicting ones means the last. Only for a gold that is a choice do the usual sentences about choices
count too ("Option B is correct.", "B" alone): see ``choice_extraction``.
"""

import re
import sys
from collections import deque
from functools import lru_cache
from typing import NamedTuple

from stages.reward.rules.names import Stated, stated
from stages.reward.rules.quantities import number
from stages.reward.rules.typography import clean, is_balanced

__all__ = (
    "MAX_ANSWER_CHARS",
    "Stated",
    "clean",
    "final_answer",
    "final_answers",
    "gold_answer",
    "number",
    "stated",
    "statement_start",
)

MAX_ANSWER_CHARS = 1000
"""A longer final answer is none."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{")
_TAG_OPEN, _TAG_CLOSE = re.compile("<answer>", re.IGNORECASE), re.compile("</answer>", re.IGNORECASE)
_CUE = re.compile(
    r"(?<!wrong )(?<!incorrect )\banswers?(?: to(?: [^\s.:,;]{1,30}){1,8})?"
    r" (?:is|are|would be|should be|must be|will be|equals)\b\**[:：]?"
    r"|\banswer(?: is)?\**[:：]\**[:：]?"
    r"|\banswer\s(?=\\[(\[]|\$)"
    r"|(?<![^\n])(?:#{1,6} ?|\*\*)(?:the |my )?(?:final |correct )?answer(?:\*\*)?[ \t]*(?=\n)"
    r"|答案(?:应该|应)?(?:是|为|选)?[:：]?|(?<![\u4e00-\u9fff])答[:：]",
    re.IGNORECASE,
)
_COMMENT = re.compile(
    r"\**[:：]?\s{1,3}(?:indeed |also |therefore |thus )?"
    r"(?:(?:consistent|reasonable|plausible|sensible|verified|confirmed|supported|justified|based on|in agreement"
    r"|in line|helpful|useful|clear)\b"
    r"|(?:correct|right|valid)(?=\s{0,3}(?:[.,;!]|\Z|(?:because|since|as|and|by|for)\b)))",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|whether|suppose|supposing|assume|assuming|guess|unless)(?: that)? (?:the|my|our) (?:final |correct )?$",
    re.IGNORECASE,
)
_RETRACTION = re.compile(r"[.!?)*$ \t]*\s+(?:wait|oops|correction|actually|hm+)[,.:!]", re.IGNORECASE)
_REFERRING = re.compile(r"\b(?:this|that|which)(?: final)? $", re.IGNORECASE)
_REFERRING_COMMENT = re.compile(
    r"\**[:：]?\s{1,3}(?!not\b|wrong\b|incorrect\b|either\b|yes\b|no\b)[a-z]+ [a-z]", re.ASCII
)
_STOP = re.compile(
    r"(?P<maths>(?<!\\)\$\$.{1,1000}?\$\$|\\\[.{1,1000}?\\\]|\\\([^\n]{1,1000}?\\\)"
    r"|\\begin\{(?P<env>(?:equation|displaymath|gather)\*?)\}.{1,1000}?\\end\{(?P=env)\}"
    r"|(?<!\\)\$(?! )(?:\\[^\n]|[^$\\\n]){1,300}?(?<! )\$)"
    r"|(?P<initial>(?<![A-Za-z])[A-Z]\. ?(?=[A-Z]\.))|(?P<end>\.(?=\s|$)|[\n。])",
    re.DOTALL,
)
_ABBREVIATION = re.compile(
    r"(?:(?<![A-Za-z])(?:St|Mt|Ft|Dr|Mr|Mrs|Ms|Jr|Prof|Gen|Lt|Sgt|Capt|vs|Fig|sq|cu)"
    r"|[A-Z]\.[A-Z]|[A-Z][a-z]+ (?<!Option )(?<!Choice )(?<!Answer )[A-Z]|(?<![^ ])[A-Z]\. [A-Z])$"
)
TAGS = re.compile(
    r"</?(?:answer|final|final_answer|b|i|u|em|strong|p|br|span|div|think|s|code)\s{0,3}/?>|<\|[\w ]{1,30}\|>",
    re.IGNORECASE,
)
_ADVERB = re.compile(
    r"(?:, ?)?(?:(?:therefore|thus|hence|so|then|still|simply|clearly|definitely|indeed),? )+", re.IGNORECASE
)
_SIGN_BEHIND = re.compile(r"\s{0,3}\$?\s{0,3}(\\?%|percent\b|pct\b|\^\s?\{?\\circ\}?)")
_ENDS_A_NUMBER = re.compile(r"[0-9]\s*\}?\s*\Z")
_JOINER = re.compile(
    r"(?:[\s$,;]|\\[()\[\],;: ]|\\q?quad|\\text\s?\{[ ,]*(?:and|or)?[ ,]*\}|and|or|\*"
    r"|[a-z](?:_\{?[0-9]\}?)? ?=)*"
)


def final_answer(response: str, *, bare: bool = False) -> str | None:
    """The cleaned final answer of a response, or None where there is none or it exceeds MAX_ANSWER_CHARS.

    A last box that never closes (a response cut short) is no final answer: an earlier box was not meant as one.
    A percent or degree sign right behind the box belongs to the answer, unless that is to be `bare`.
    """
    said = statement(response, bare=bare)
    return (clean(said.text) or None) if said is not None and said.text is not None else None


def final_answers(response: str) -> str | None:
    """As `final_answer`, where several are asked for: boxes that only ``,`` or ``and`` parts are one list."""
    said = statement(response)
    if said is None or said.text is None or not said.boxed:
        return final_answer(response)
    joined = _joined_boxes(response[: said.start + MAX_ANSWER_CHARS + 10], said.start)
    return clean(joined) or None


def statement_start(response: str) -> int | None:
    """Index of the character where the final answer's statement begins, or None where there is none."""
    said = statement(response)
    return None if said is None else said.start


def gold_answer(answer: str) -> str | None:
    """The cleaned reference answer, freed of ``\\boxed{}``, ``$`` and ``####``; None where nothing scorable is left.

    Nothing scorable: no text, more than MAX_ANSWER_CHARS, or LaTeX whose braces or environments do not close.
    """
    box = _last(_BOX, answer)
    if box is not None:
        text = _boxed(answer, box)
        said = text if text is None else _joined_boxes(answer[: box.start() + MAX_ANSWER_CHARS + 10], box.start())
    else:
        said = answer.rpartition("####")[2]
    if said is None or len(said.strip()) > MAX_ANSWER_CHARS or not _closes(said):
        return None
    return clean(said) or None


def _closes(latex: str) -> bool:
    return (
        is_balanced(latex)
        and latex.count(r"\begin") == latex.count(r"\end")
        and sum(map(latex.count, "([")) == sum(map(latex.count, ")]"))
    )


class Said(NamedTuple):
    """Where a final answer is stated and its text, None where it never ends or is too long.

    marked: by a tag or a box, which is `boxed`, rather than announced by a sentence; `rest` stands behind that.
    """

    start: int
    text: str | None
    boxed: bool = False
    marked: bool = False
    rest: str = ""


def statement(response: str, *, bare: bool = False) -> Said | None:
    """The last box (a `bare` one without the sign behind it) or tag, or else what the last cue announces.

    Reward, counts and auditor each ask the responses of a shard: those that are not huge are read once.
    """
    return (_remembered if len(response) <= _REMEMBERED_CHARS else _statement)(response, bare)


def _statement(response: str, bare: bool) -> Said | None:
    box = _last(_BOX, response)
    close = _last(_TAG_CLOSE, response)
    tag = _last(_TAG_OPEN, response, close.start()) if close else None
    if close and tag and (box is None or box.start() < tag.start()):
        return _tagged(tag, response[tag.end() : close.start()])
    if box is not None:
        text = _boxed(response, box) if bare else _with_sign(response, box)
        return Said(box.start(), text, boxed=True, marked=True)
    return announced(response)


_REMEMBERED_CHARS = 2**14
_remembered = lru_cache(maxsize=2048)(_statement)


def _tagged(tag: re.Match[str], content: str) -> Said:
    inner = announced(content)
    text = content if inner is None else inner.text
    short = text is not None and len(text.strip()) <= MAX_ANSWER_CHARS
    return Said(tag.start(), text if short else None, marked=True)


def _last(pattern: re.Pattern[str], text: str, end: int = sys.maxsize) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text, 0, end), maxlen=1)), None)


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def _end_of_box(text: str, box: re.Match[str]) -> int | None:
    depth = 1
    for brace in _BRACE.finditer(text, box.end(), box.end() + MAX_ANSWER_CHARS + 1):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def _boxed(text: str, box: re.Match[str]) -> str | None:
    end = _end_of_box(text, box)
    return None if end is None else text[box.end() : end]


def _with_sign(text: str, box: re.Match[str]) -> str | None:
    """What is in the box, and a percent or degree sign right behind it."""
    end = _end_of_box(text, box)
    if end is None:
        return None
    sign = _SIGN_BEHIND.match(text, end + 1)
    inside = text[box.end() : end]
    return f"{inside} {sign[1]}" if sign and _ENDS_A_NUMBER.search(inside) else inside


def _joined_boxes(text: str, last: int) -> str:
    """The last box, which begins at `last`, and those before it that nothing but a comma or ``and`` parts from it."""
    window = max(0, last - MAX_ANSWER_CHARS)
    found: list[str] = []
    following = len(text)
    for box in reversed(list(_BOX.finditer(text, window))):
        end = _end_of_box(text, box)
        if end is None or (found and not _JOINER.fullmatch(text, end + 1, following)):
            break
        found.insert(0, text[box.end() : end])
        following = box.start()
    return ", ".join(found)


def announced(text: str) -> Said | None:
    """What the last cue announces."""
    cue = _last_cue(text)
    if cue is None:
        return None
    announcement = TAGS.sub(_tag_as_end, text[cue.end() :][: 2 * MAX_ANSWER_CHARS].lstrip(" \t\r\n*"))
    said = first_sentence(cue.start(), announcement)
    answer = None if said.text is None else _ADVERB.sub("", TAGS.sub(" ", said.text).strip(" *"), count=1)
    return said._replace(text=answer if answer is not None and len(answer) <= MAX_ANSWER_CHARS else None)


def first_sentence(start: int, text: str) -> Said:
    """The first sentence of a text as a statement; one that the next takes back ("Wait, ...") states nothing."""
    first = sentence(text)
    rest = text[len(first) :]
    return Said(start, None if _RETRACTION.match(rest) else first, rest=rest)


def _tag_as_end(tag: re.Match[str]) -> str:
    """A closing tag of the answer, or a special token, ends its sentence."""
    return "\n" if tag[0].lower().startswith(("</answer", "</final", "<|", "</s>", "<br")) else ""


def _last_cue(text: str) -> re.Match[str] | None:
    """The last cue that is no comment; the last of all, where every one is."""
    last = comment = None
    for cue in _CUE.finditer(text):
        if _SUPPOSED.search(text, max(0, cue.start() - 40), cue.start()):
            continue
        if _is_comment(text, cue):
            comment = cue
        else:
            last = cue
    return last or comment


def _is_comment(text: str, cue: re.Match[str]) -> bool:
    if _COMMENT.match(text, cue.end()):
        return True
    before = text[max(0, cue.start() - 20) : cue.start()]
    return bool(_REFERRING.search(before) and _REFERRING_COMMENT.match(text, cue.end()))


def sentence(text: str) -> str:
    """Up to the end of the sentence or line; formulas are no sentences."""
    for stop in _STOP.finditer(text):
        if stop["end"] and not (stop["end"] == "." and _ABBREVIATION.search(text, 0, stop.start())):
            return text[: stop.start()]
    return text
