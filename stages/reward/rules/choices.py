"""Which choice a statement names: its letter, its letter beside its own text, or its text alone."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from stages.reward.rules.quantities import number, quantity, units_agree
from stages.reward.rules.typography import ARTICLE, clean, normalised

LETTERS = "ABCDEFGHIJ"

_LETTER = re.compile(r"\(?([A-Ja-j])\)?")
_LEAD = re.compile(
    r"(?:(?:is|therefore|thus|hence|so|then|still|clearly|definitely|indeed|simply|just|also|only|actually|certainly"
    r"|the|correct|right|best|final|statement|that it|it)[,:]? "
    r"|(?:option|choice|answer|letter|item)s?[:,]? ?(?=[(\[{<\"'“‘]*[A-J](?![a-zA-Z]))"
    r"|选项?|故选|应选)",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"[{<\"'“‘*` ]{0,6}[(\[]?[\"'*]{0,2}(?:(?P<upper>[A-J])|(?P<lower>[a-j])(?=[)\]}>]|$))"
    r"(?P<closing>[)\]}>\"'”’*` ]{0,6})(?:选?项)?(?:是?正确的?(?:答案|选项)?)?(?P<stop>[.:,;)=-]{0,3})(?![\w'(^_])"
)
_SAYS_RIGHT = re.compile(
    r"(?:is|would be|must be|should be)?,? ?(?:the |my |indeed |clearly )*(?:(?:most |best |final |only )*"
    r"(?:correct|right|true|best|accurate|appropriate|suitable|answer|option|choice|one|statement)(?: |$))+"
    r"(?:(?:here|for this question|to this question|to the question))?",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"[,;:(-]* ?\b(?:because|since|as|for|given|due to|where|which|with|so|based on|according)\b|[,;:(] "
)
_BECAUSE = re.compile(r",? (?:because|since|as)\b(?!.*\b(?:option|choice|answer)\b)")
_UNSURE = re.compile(r"\b(?:maybe|perhaps|possibly|probably|not sure|unsure|guess)\b|\?", re.IGNORECASE)
_OPEN = re.compile(r"\b(?:or|either|neither|might|may|could|unless|but|however|although|if|instead)\b", re.IGNORECASE)
"""Words that leave the letter open where the choices' texts are not known."""
_DENIED = re.compile(
    r"(?:is|was|are|were|can|does|do|would|will|should|must|has|and|nor|&|to|through)\b|(?:isn|wasn|doesn|can)'?t\b"
    r"|(?:not|wrong|incorrect|false)\b(?! enough)|[+*/=<>^-]",
    re.IGNORECASE,
)
_OTHER_LETTER = re.compile(r"(?<![\w\\'^_{])[(\[]?([A-J])(?:[)\].:,]|(?= |$))(?![\w'])")
_MATHS = re.compile(r"[0-9\\^+*/=<>√π]")
_WORD = re.compile(r"[^\W\d_]{3,}")


class Named(NamedTuple):
    """A letter's place in the alphabet and what stands beside it, which the choice's own text must not contradict."""

    place: int
    beside: str


def letter_of(gold: str) -> int | None:
    """The place of a gold that is a choice letter, A to J in brackets or not."""
    match = _LETTER.fullmatch(gold)
    return LETTERS.index(match[1].upper()) if match else None


def right_place(gold: str, choices: Sequence[str]) -> int | None:
    """Which of the choices the gold is, by letter or by text; None where it is none, or the text of two."""
    place = letter_of(gold)
    if place is not None and place < len(choices):
        return place
    named = _named_in_full(gold, choices)
    return named[0] if len(named) == 1 else None


def named_choice(statement: str) -> Named | None:
    """The letter that a cleaned statement names, or None: two letters, a hedge or a denial name none."""
    text = _without_lead(statement)
    match = _OPENING.match(text)
    if match is None:
        return None
    place = LETTERS.index((match["upper"] or match["lower"]).upper())
    beside = text[match.end() :]
    set_off = bool(match["closing"].strip() or match["stop"]) or not beside.strip()
    if "=" in match["stop"]:
        return None
    return _beside(place, beside.strip(), set_off)


def _without_lead(text: str) -> str:
    while True:
        rest = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
        if rest == text:
            return text
        text = rest.lstrip(" ,:*")


def _beside(place: int, beside: str, set_off: bool) -> Named | None:
    if says := _SAYS_RIGHT.match(beside):
        beside, set_off = beside[says.end() :].strip(" .,"), True
        if not beside:
            return Named(place, "")
    if not set_off and (_DENIED.match(beside) or (LETTERS[place] in "AI" and not _follows_article(beside))):
        return None
    return Named(place, beside.lstrip(" .,:;)-—*") if set_off and not _REASON.match(beside) else beside)


def _follows_article(beside: str) -> bool:
    """Whether what stands behind a bare ``A`` or ``I`` shows that it is no article or pronoun."""
    return bool(_REASON.match(beside) or _MATHS.match(beside) or beside[:1].isupper())


def is_sure(named: Named) -> bool:
    """Whether what stands beside the letter neither hedges, nor denies it, nor names another letter."""
    beside = named.beside
    others = {match[1] for match in _OTHER_LETTER.finditer(beside)} - {LETTERS[named.place]}
    return not (_UNSURE.search(beside) or others or re.match(r"(?:is|was|isn't|cannot|can't)\b", beside))


def leaves_open(named: Named) -> bool:
    """Whether what stands beside the letter may offer an alternative."""
    return _OPEN.search(named.beside) is not None


@functools.lru_cache(maxsize=4096)
def label(text: str) -> str:
    """A choice's text as it is compared: apart from case, spaces, article and final punctuation."""
    bare = clean(text).strip(" .,;:")
    return ARTICLE.sub("", " ".join(bare.split()), count=1).casefold()


def _named_in_full(text: str, choices: Sequence[str]) -> list[int]:
    """Places of the choices whose text this is; as quantities (``270`` is ``270°``) where it is none word by word."""
    wanted = normalised(label(text))
    verbatim = [place for place, choice in enumerate(choices) if normalised(label(choice)) == wanted]
    return verbatim or [place for place, choice in enumerate(choices) if _same_quantity(text, choice)]


def _same_quantity(text: str, choice: str) -> bool:
    one, other = quantity(clean(text)), quantity(clean(choice))
    value = number(one.body)
    return value is not None and value == number(other.body) and units_agree(one.unit, other.unit)


def named_by_text(text: str, choices: Sequence[str]) -> list[int]:
    """Places of the choices whose text a statement is, or begins with before its reason.

    Of texts that begin alike (half, half past) the longest counts. A reason that mentions another choice names both.
    """
    if full := _named_in_full(text, choices):
        return full
    said, labels = label(_without_lead(text)), [label(choice) for choice in choices]
    begun = [place for place, name in enumerate(labels) if name and _begins(said, name)]
    longest = max((len(labels[place]) for place in begun), default=0)
    named = [place for place in begun if len(labels[place]) == longest]
    if not named:
        return _named_before_reason(said, choices)
    rest = said[longest:]
    if rest and (not _REASON.match(rest) or _UNSURE.search(rest)):
        return []
    return named + [place for place, name in enumerate(labels) if place not in named and _mentions(rest, name)]


def _named_before_reason(said: str, choices: Sequence[str]) -> list[int]:
    """As quantities: ``45 degrees, since the sides agree`` names 45°. A reason with a number may name another."""
    reason = _BECAUSE.search(said)
    if reason is None:
        return []
    rest = said[reason.start() :]
    unclear = _UNSURE.search(rest) or _OPEN.search(rest) or _MATHS.search(rest)
    return [] if unclear else _named_in_full(said[: reason.start()], choices)


def _begins(said: str, name: str) -> bool:
    return said.startswith(name) and not re.match(r"[\w.]", said[len(name) :])


def _mentions(text: str, name: str) -> bool:
    return bool(name) and re.search(rf"(?<![\w.]){re.escape(name)}(?!\w|\.[0-9])", text) is not None


def contradicts(named: Named, choices: Sequence[str]) -> bool:
    """Whether words beside the letter are those of another choice, or none that its own value explains."""
    if places := named_by_text(named.beside, choices):
        return named.place not in places or len(set(places)) > len(_named_in_full(choices[named.place], choices))
    said = label(named.beside)
    own = label(choices[named.place])
    if any(_mentions(said, label(choice)) for choice in choices if label(choice) != own) and not _mentions(said, own):
        return True
    return not _WORD.search(own) and not _REASON.match(named.beside)


def explains(named: Named, choices: Sequence[str]) -> bool:
    """Whether what stands beside the letter mentions its own text and no other choice's: ``B, which is 45 cm``."""
    said, own = label(named.beside), label(choices[named.place])
    others = [name for name in map(label, choices) if name != own and _mentions(said, name)]
    return _mentions(said, own) and not others and is_sure(named) and not leaves_open(named)


def is_maths(text: str) -> bool:
    """Whether a text is a formula or a number rather than words."""
    return bool(_MATHS.search(text)) and len(_WORD.findall(re.sub(r"\\[a-zA-Z]+", "", text))) < 2
