"""Where a text states its final answer, and how that answer reads. Pure functions; nothing is evaluated.

A final answer is the last ``\\boxed{...}`` or ``<answer>...</answer>``; without either, what follows the last "answer
is" or "Answer:" up to the end of its sentence or line, or the formula displayed there. A sentence that only comments on
the answer ("This answer is consistent with the figure.") states none. There is no further way: a text without these has
no final answer, and a text with two conflicting ones means the last. Only for a gold that is a choice do the usual
sentences about choices count too ("Option B is correct.", "B" alone): see ``final_choice``.
"""

import re
from collections import deque
from typing import NamedTuple

from stages.scoring.rules.names import Stated, stated
from stages.scoring.rules.quantities import number
from stages.scoring.rules.typography import clean, is_balanced

__all__ = (
    "MAX_ANSWER_CHARS",
    "Stated",
    "announced_choice",
    "clean",
    "final_answer",
    "final_answers",
    "final_choice",
    "gold_answer",
    "number",
    "stated",
    "statement_start",
)

MAX_ANSWER_CHARS = 1000
"""A longer final answer is none."""
MAX_CHOICE_CHARS = 4000
"""So many characters at the end of a response are searched for a sentence about a choice."""

_BOX = re.compile(r"\\boxed\s{0,3}\{")
_TAG_OPEN, _TAG_CLOSE = "<answer>", "</answer>"
_CUE = re.compile(
    r"\banswers?(?: to(?: [^\s.:,;]{1,30}){1,8})? (?:is|are|would be|should be|must be)\b\**[:：]?"
    r"|\banswer(?: is)?\**[:：]\**[:：]?"
    r"|\banswer\s(?=\\[(\[]|\$)"
    r"|(?<![^\n])(?:#{1,6} ?|\*\*)(?:the |my )?(?:final |correct )?answer(?:\*\*)?[ \t]*(?=\n)"
    r"|答案(?:应该|应)?(?:是|为|选)?[:：]?",
    re.IGNORECASE,
)
_COMMENT = re.compile(
    r"\**[:：]?\s{1,3}(?:indeed |also |therefore |thus )?"
    r"(?:consistent|reasonable|plausible|sensible|correct|right|valid|verified|confirmed|supported|justified|based on"
    r"|in agreement|in line)\b",
    re.IGNORECASE,
)
_REFERRING = re.compile(r"\b(?:this|that|which)(?: final)? $", re.IGNORECASE)
_REFERRING_COMMENT = re.compile(
    r"\**[:：]?\s{1,3}(?!not\b|wrong\b|incorrect\b|either\b|yes\b|no\b)[a-z]+ [a-z]", re.ASCII
)
_STOP = re.compile(
    r"(?P<maths>\$\$.{1,1000}?\$\$|\\\[.{1,1000}?\\\]|\\\([^\n]{1,1000}?\\\)|\$(?! )[^$\n]{1,300}?(?<! )\$)"
    r"|(?P<end>\.(?=\s|$)|[\n。])",
    re.DOTALL,
)
_ABBREVIATION = re.compile(
    r"(?:(?<![A-Za-z])(?:St|Mt|Ft|Dr|Mr|Mrs|Ms|Jr|Prof|Gen|Lt|Sgt|Capt|vs|Fig|sq|cu)"
    r"|[A-Z]\.[A-Z]|[A-Z][a-z]+ (?<!Option )(?<!Choice )(?<!Answer )[A-Z]|(?<![^ ])[A-Z]\. [A-Z])$"
)
_TAGS = re.compile(
    r"</?(?:answer|final|final_answer|b|i|u|em|strong|p|br|span|div|think|s|code)\s{0,3}/?>|<\|[\w ]{1,30}\|>",
    re.IGNORECASE,
)
_ADVERB = re.compile(r"(?:(?:therefore|thus|hence|so|then|still|simply|clearly|definitely|indeed),? )+", re.IGNORECASE)
_PERCENT = re.compile(r"\s{0,3}\$?\s{0,3}(\\?%|percent\b|pct\b|\^\s?\{?\\circ\}?)")
_JOINER = re.compile(r"(?:[\s$,;]|\\[()\[\],;: ]|\\q?quad|\\text\s?\{[ ,]*(?:and|or)?[ ,]*\}|and|or|\*)*")


def final_answer(response: str) -> str | None:
    """The cleaned final answer of a response, or None where there is none or it exceeds MAX_ANSWER_CHARS.

    A last box that never closes (a response cut short) is no final answer: an earlier box was not meant as one.
    """
    said = _statement(response)
    return (clean(said.text) or None) if said is not None and said.text is not None else None


def final_answers(response: str) -> str | None:
    """As `final_answer`, where several are asked for: boxes that only ``,`` or ``and`` parts are one list."""
    said = _statement(response)
    if said is None or said.text is None or not said.boxed:
        return final_answer(response)
    joined = _joined_boxes(response[: said.start + MAX_ANSWER_CHARS + 10], said.start)
    return clean(joined) or None


def statement_start(response: str) -> int | None:
    """Index of the character where the final answer's statement begins, or None where there is none."""
    said = _statement(response)
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


class _Said(NamedTuple):
    """Where a final answer is stated and its text, None where it never ends or is too long."""

    start: int
    text: str | None
    boxed: bool = False


def _statement(response: str) -> _Said | None:
    box = _last(_BOX, response)
    close = response.rfind(_TAG_CLOSE)
    tag = response.rfind(_TAG_OPEN, 0, close) if close >= 0 else -1
    if tag >= 0 and (box is None or box.start() < tag):
        return _tagged(response, tag, close)
    if box is not None:
        return _Said(box.start(), _with_percent(response, box), boxed=True)
    return _announced(response)


def _tagged(response: str, tag: int, close: int) -> _Said:
    content = response[tag + len(_TAG_OPEN) : close]
    inner = _announced(content)
    text = content if inner is None else inner.text
    return _Said(tag, text if text is not None and len(text.strip()) <= MAX_ANSWER_CHARS else None)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


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


def _with_percent(text: str, box: re.Match[str]) -> str | None:
    """What is in the box, and a percent or degree sign right behind it."""
    end = _end_of_box(text, box)
    if end is None:
        return None
    sign = _PERCENT.match(text, end + 1)
    inside = text[box.end() : end]
    return f"{inside} {sign[1]}" if sign and inside[-1:].isdigit() else inside


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


def _announced(text: str) -> _Said | None:
    cue = _last_cue(text)
    if cue is None:
        return None
    rest = text[cue.end() :][: 2 * MAX_ANSWER_CHARS].lstrip(" \t\r\n*")
    sentence = _ADVERB.sub("", _TAGS.sub(" ", _sentence(_TAGS.sub(_tag_as_end, rest))).strip(" *"), count=1)
    return _Said(cue.start(), sentence if len(sentence) <= MAX_ANSWER_CHARS else None)


def _tag_as_end(tag: re.Match[str]) -> str:
    """A closing tag of the answer, or a special token, ends its sentence."""
    return "\n" if tag[0].lower().startswith(("</answer", "</final", "<|", "</s>", "<br")) else ""


def _last_cue(text: str) -> re.Match[str] | None:
    """The last cue that is no comment; the last of all, where every one is."""
    last = comment = None
    for cue in _CUE.finditer(text):
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


def _sentence(text: str) -> str:
    """Up to the end of the sentence or line; formulas are no sentences."""
    for stop in _STOP.finditer(text):
        if stop["end"] and not (stop["end"] == "." and _ABBREVIATION.search(text, 0, stop.start())):
            return text[: stop.start()]
    return text


# ---- choices

_L = r"[(\[{<\"'“*$`]*(?:\\(?:text|textbf|mathrm|mathbf)\{)?[(\[]?[A-J](?![\w'’])"
_LIKE = r"(?i:option |choice |letter |answer |the letter |the option )?"
_VERB = r"(?i: is| would be| should be| must be| has to be)(?i: therefore| thus| clearly| indeed| then)?"
_CHOICE_CUE = re.compile(
    rf"\b(?i:answer|ans)\b(?:[ *]?[:=→]|[ *]?-+>?|\*\*)?[\s*]{{1,4}}(?={_L})"
    rf"|\b(?i:answer|choice|option|letter|selection|one|statement)s?\b(?: [^.\n:]{{0,60}}?)?{_VERB}(?:[:,]\s{{0,3}}|[ *])[ *]{{0,3}}"
    rf"{_LIKE}(?={_L})"
    rf"|\b(?i:correct|right|best|final|my) (?i:option|choice|letter|selection|one)\**[:：][\s*]{{1,4}}{_LIKE}(?={_L})"
    rf"|\b(?i:choose|chose|chosen|pick|picked|select|selected|go with|going with|went with|opt for)[:,]? {_LIKE}(?={_L})"
    rf"|(?<![^\s.])(?i:so|thus|therefore|hence|in conclusion|conclusion|it'?s|it is|it must be|that'?s|that is)[,:]? "
    rf"(?i:(?:it is|it'?s|it must be|the answer is|we have) )?{_LIKE}(?={_L}[^A-Za-z\n]{{0,6}}(?:\n|$))"
    rf"|(?:故|应|所以|因此)?选(?:项|择)?(?:是|为)?[:：]? ?(?={_L})|答案(?:应该|应)?(?:是|为|选)?[:：]? ?(?={_L})"
)
_NOUNS = ("angle", "point", "points", "side", "line", "vertex", "node", "triangle", "circle", "or", "and", "neither")
_CHOICE_JUDGED = re.compile(
    rf"(?<![\w'(]){''.join(f'(?<!{noun} )' for noun in _NOUNS)}(?P<named>{_L}[)\]}}>\"'”*$`.]*)"
    r" (?:is|would be|must be|should be)(?: indeed| clearly| definitely| therefore)*(?: the| my)?"
    r"(?: final| only| most| single| best)*(?: correct| right| best| appropriate| answer)\b(?! angle| triangle| side)"
)
_LAST_LINE = re.compile(rf"(?:^|\n)[\s>#*-]*({_L}[)\]}}>\"'”*$`.:]*)\s*$")


def final_choice(response: str) -> str | None:
    """The cleaned statement of a choice: a box or tag, or else the last sentence that announces one.

    Beside the cues of `final_answer`: "option B is correct", "I choose B", "so it is B", a last line that is a letter,
    or a whole response of one line.
    """
    said = _statement(response)
    if said is not None and (said.boxed or response.startswith(_TAG_OPEN, said.start)):
        return (clean(said.text) or None) if said.text is not None else None
    return announced_choice(response)


def announced_choice(response: str) -> str | None:
    """As `final_choice`, boxes and tags left aside."""
    said = _announced(response)
    offset = max(0, len(response) - MAX_CHOICE_CHARS)
    spoken = _spoken_choice(response[offset:])
    if spoken is not None and (said is None or offset + spoken.start >= said.start):
        said = spoken
    if said is None and len(response) <= MAX_ANSWER_CHARS and "\n" not in response.strip():
        said = _Said(0, _TAGS.sub("", response))
    return clean(said.text or "") or None if said is not None else None


def _spoken_choice(text: str) -> _Said | None:
    found = [
        _Said(cue.start(), _sentence(_TAGS.sub("", text[cue.end() :][:MAX_ANSWER_CHARS])))
        for cue in _CHOICE_CUE.finditer(text)
    ]
    found += [_Said(judged.start(), judged["named"]) for judged in _CHOICE_JUDGED.finditer(text)]
    if last_line := _LAST_LINE.search(text):
        found.append(_Said(last_line.start(1), last_line[1]))
    return max(found, key=lambda said: said.start, default=None)
