"""Where a response states the choice that it takes: boxes and tags, as ever, or the usual sentences about choices."""

import re
from typing import NamedTuple

from stages.reward.extraction import MAX_ANSWER_CHARS, TAGS, Said, announced, first_sentence, sentence, statement
from stages.reward.rules.typography import clean

MAX_CHOICE_CHARS = 4000
"""So many characters at the end of a response are searched for a sentence about a choice."""

_L = r"[(\[{<\"'“*$`]{0,6}(?:\\(?:text|textbf|mathrm|mathbf)\{)?[(\[]?[A-J](?:(?![\w'’])|(?=选?项|是?正确))"
_LIKE = r"(?i:option |choice |letter |answer |the letter |the option )?"
_VERB = r"(?i: is| would be| should be| must be| has to be| will be)(?i: therefore| thus| clearly| indeed| then)?"
_CHOICE_CUE = re.compile(
    rf"\b(?i:answer|ans)\b(?:[ *]?[:=→–—]|[ *]?-+>?|\*\*)?[\s*]{{1,4}}(?={_L}|\([a-j]\))"
    rf"|\b(?i:answer|choice|option|letter|selection|one|statement|solution)s?\b(?: [^.\n:]{{0,60}}?)?{_VERB}"
    rf"(?:[:,]\s{{0,3}}|[ *])[ *]{{0,3}}{_LIKE}(?={_L})"
    rf"|\b(?i:correct|right|best|final|my) (?i:option|choice|letter|selection|one)\**[:：][\s*]{{1,4}}{_LIKE}(?={_L})"
    rf"|\b(?i:choose|chose|chosen|pick|picked|select|selected|go with|going with|went with|opt for)[:,]? "
    rf"{_LIKE}(?={_L})"
    rf"|\bI(?: would|['’]d) say[:,]? {_LIKE}(?={_L})"
    rf"|\b(?i:which|this|that|it|value|result) (?i:corresponds to|matches|is) (?i:the )?(?i:option|choice|answer) "
    rf"(?={_L}[^A-Za-z\n]{{0,6}}(?:\n|$))"
    rf"|(?<![^\s.])(?i:so|thus|therefore|hence|in conclusion|conclusion|it'?s|it is|it must be|that'?s|that is)[,:]? "
    rf"(?i:(?:it is|it'?s|it must be|the answer is|we have) )?{_LIKE}(?={_L}[^A-Za-z\n]{{0,6}}(?:\n|$))"
    rf"|(?:故|应|所以|因此)?选(?:项|择)?(?:是|为)?[:：]? ?(?={_L})|答案(?:应该|应)?(?:是|为|选)?[:：]? ?(?={_L})"
    rf"|(?<![\u4e00-\u9fff])答[:：] ?(?={_L})"
)
_NOUNS = ("angle", "point", "points", "side", "line", "vertex", "node", "triangle", "circle", "or", "and", "neither")
_CHOICE_JUDGED = re.compile(
    rf"(?<![\w'(]){''.join(f'(?<!{noun} )' for noun in _NOUNS)}(?P<named>{_L}[)\]}}>\"'”*$`.]*)"
    r" (?:is|would be|must be|should be)(?: indeed| clearly| definitely| therefore)*(?: the| my)?"
    r"(?: final| only| most| single| best)*(?: correct| right| best| appropriate| answer)\b(?! angle| triangle| side)"
)
_FIRST_LINE = re.compile(
    rf"\s*({_L}[)\]}}>\"'”*$`.:]*(?=\s*\n)"
    rf"|\**(?:[(\[][A-J][)\]]|[A-J][.:)])[*.:]*[ \t][^\n]{{1,60}}(?=[ \t]*\n[ \t]*\n))"
)
_OPTION_LINE = re.compile(r"\n[\s>*-]{0,6}[(\[]?[A-J][)\].:]")
_LAST_LINE = re.compile(rf"(?:^|\n)[\s>#*-]*({_L}[)\]}}>\"'”*$`.:]*)\s*$")


class Chosen(NamedTuple):
    """A cleaned statement of a choice, and the sentence behind it on its line, which may be the text of one."""

    statement: str
    behind: str = ""


def final_choice(response: str) -> Chosen | None:
    """The statement of a choice: a box or tag, or else the last sentence that announces one.

    Beside the cues of `final_answer`: "option B is correct", "I choose B", "so it is B", a first or last line that is a
    letter, a first paragraph that is a letter and its text where no other line begins with one, or a whole response of
    one line.
    """
    return _chosen(_statement_of_choice(response))


def _chosen(said: Said | None) -> Chosen | None:
    statement = clean(said.text or "") if said else ""
    if said is None or not statement:
        return None
    behind = _NEXT_SENTENCE.match(said.rest)
    return Chosen(statement, clean(sentence(said.rest[behind.end() :])) if behind else "")


_NEXT_SENTENCE = re.compile(r"\.[*\"')]{0,3}[ \t]+")


def _statement_of_choice(response: str) -> Said | None:
    said = statement(response)
    if said is not None and said.marked:
        return said
    return _announced_choice(response)


def choice_start(response: str) -> int | None:
    """Index of the character where that statement begins, or None where there is none."""
    said = _statement_of_choice(response)
    return None if said is None else said.start


def announced_choice(response: str) -> Chosen | None:
    """As `final_choice`, boxes and tags left aside."""
    return _chosen(_announced_choice(response))


def _announced_choice(response: str) -> Said | None:
    said = announced(response)
    offset = max(0, len(response) - MAX_CHOICE_CHARS)
    spoken = _spoken_choice(response[offset:])
    if spoken is not None and (said is None or offset + spoken.start >= said.start):
        said = spoken
    if said is None and (first := _FIRST_LINE.match(response)) and not _OPTION_LINE.search(response, first.end()):
        said = Said(first.start(1), TAGS.sub("", first[1]))
    if said is None and len(response) <= MAX_ANSWER_CHARS and "\n" not in response.strip():
        said = Said(0, TAGS.sub("", response))
    return said


_TAKEN_BACK = re.compile(
    r"\b(?:not|never|cannot|doubt|if|unless|whether|suppose|assume|assuming|incorrect|wrong|why|nor|than)\b|n['’]t\b"
    r"|\bno $|[不非没]",
    re.IGNORECASE,
)


def _spoken_choice(text: str) -> Said | None:
    found = [
        first_sentence(cue.start(), TAGS.sub("", text[cue.end() :][:MAX_ANSWER_CHARS]))
        for cue in _CHOICE_CUE.finditer(text)
        if _is_meant(text, cue.start())
    ]
    found += [
        Said(judged.start(), judged["named"])
        for judged in _CHOICE_JUDGED.finditer(text)
        if _is_meant(text, judged.start())
    ]
    if last_line := _LAST_LINE.search(text):
        found.append(Said(last_line.start(1), last_line[1]))
    return max(found, key=lambda said: said.start, default=None)


def _is_meant(text: str, start: int) -> bool:
    """Whether nothing before it in its clause takes a statement back: ``if B is correct``, ``I would not choose B``."""
    return not _TAKEN_BACK.search(re.split(r"[.!?\n,;:。，；：]", text[max(0, start - 80) : start])[-1])
