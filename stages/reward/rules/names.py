"""What stands left of an equals sign: ``x = 5`` says 5, of x."""

import re
from collections.abc import Hashable
from typing import NamedTuple

from stages.reward.rules.figures import segment
from stages.reward.rules.quantities import quantity
from stages.reward.rules.typography import normalised

HEDGES = {"not", "no", "never", "either", "neither", "or", "maybe", "perhaps", "probably", "possibly"}
HEDGES |= {"about", "roughly", "nearly", "around"}
"""Words that a name or a lead-in does not hold: with them nothing is stated."""

_SUBSCRIPT = r"(?:_(?:\w|\{[\w ,\\]+\}))"
_PRIMES = r"(?:'|\^\{?\\prime\}?)*"
# A constant is no name: \pi = 3 would pass for 3.
_NOT_NAMES = (
    r"pi|infty|frac|sqrt|text|neq?|le|ge|in|approx|cdot|times|div|pm|mp|left|right|begin|end|int|sum|prod|lim|log|ln"
)
_GREEK = rf"\\(?!(?:{_NOT_NAMES})(?![a-zA-Z_]))[a-z]+"
_LETTER = rf"(?:[a-z]|[A-Z]{{1,4}}|{_GREEK}){_PRIMES}{_SUBSCRIPT}?{_PRIMES}"
_MARK = r"(?:triangle|angle|square|odot|overline|overrightarrow|overleftrightarrow|widehat|vec|hat|bar|mathbf)"
_FIGURE = rf"(?:m ?)?\\{_MARK} ?(?:\{{ ?[A-Za-z0-9']+ ?\}}|[A-Za-z0-9']+)"
_SIZE = rf"\\?\| ?(?:{_FIGURE}|{_LETTER}) ?\\?\|"
_PLAIN = rf"(?:{_FIGURE}|{_SIZE}|{_LETTER})"
_FUNCTION = r"\\?(?:arc)?(?:sin|cos|tan|cot|sec|csc)"
_OF_SEVERAL = r"\\?(?:gcd|lcm|GCD|LCM|max|min) ?\([^()=]{1,40}\)"
_LIMIT = r"\\lim ?_ ?\{[^{}]{1,30}\} ?[a-zA-Z]\([^()=]{1,30}\)"
_APPLIED = rf"{_FUNCTION}(?:\^(?:[0-9]|\{{-?[0-9]\}}))? ?(?:\(? ?[0-9]?(?:{_PLAIN}) ?\)?|\([^()=]{{1,30}}\))"
_MEASURE = r"(?:\\operatorname ?\{ ?)?(?:[Aa]rea|[Pp]erimeter|[Vv]olume|[Ll]ength)(?: ?\})?"
_ARGUMENT = r"\( ?(?:-?[A-Za-z0-9\\|,'. ]{1,30}|[a-z]'{0,2} ?\([^()=]{1,20}\)) ?\)"
_CALLER = rf"(?:[a-zA-Z]{_PRIMES}{_SUBSCRIPT}?|[a-z]\^\{{?-1\}}?|\([a-z] ?\\circ ?[a-z]\)|{_MEASURE})"
_CALLED = rf"(?:{_CALLER} ?{_ARGUMENT}|P ?\([^()]{{1,30}}\))"
_AREA = r"\[ ?[A-Z]{3,6} ?\]"
_ONE = rf"(?:{_APPLIED}|{_CALLED}|{_OF_SEVERAL}|{_LIMIT}|{_MEASURE} ?{_SUBSCRIPT}|{_AREA}|{_PLAIN})"
_RATIO = rf"(?:{_ONE} ?[:/] ?{_ONE}(?: ?: ?{_ONE})?|\\frac ?\{{ ?{_ONE} ?\}} ?\{{ ?{_ONE} ?\}})"
_TUPLE = rf"\( ?{_ONE}(?: ?, ?{_ONE}){{1,4}} ?\)"
_LENGTH = rf"(?:{_FIGURE}|{_SIZE}|[A-Z]{{2}})"
_SUM = rf"{_LENGTH}(?: ?(?:[+-]|\\cdot) ?{_LENGTH}){{1,4}}"
_WORDS = r"[A-Za-z][a-z]+(?: (?:[A-Za-z]+|\\[a-z]+)){0,5}"
_NAMED = re.compile(
    rf"(?P<name>{_RATIO}|{_TUPLE}|{_ONE}|{_SUM}|{_WORDS}) ?(?:=|\\(?:in|approx)(?![a-zA-Z])) ?(?P<value>[^=]+)"
    rf"|(?P<ratio>{_ONE} ?: ?{_ONE}) ?= ?(?P<shares>[^=]+)"
    rf"|(?P<point>[A-Z]{_PRIMES}{_SUBSCRIPT}?) ?:? ?(?P<place>\([^()]*,[^()]*\))"
)


class Named(NamedTuple):
    """``x = 5`` is name ``x`` and value ``5``; the name may be empty."""

    name: str
    value: str


def named(text: str) -> Named:
    """Take the name off a cleaned answer: a letter, a figure, a length, a function of one, a ratio of two, a tuple of
    them, a sum of lengths, or words (``Area``). A sum of variables or a multiple (``2x = 10``) is no name, nor is a
    constant."""
    match = _NAMED.fullmatch(text)
    if match is None:
        return Named("", text)
    name = match["name"] or match["ratio"] or match["point"]
    if HEDGES & set(name.lower().split()):
        return Named("", text)
    return Named(name, (match["value"] or match["shares"] or match["place"]).strip())


def names_agree(one: str, other: str) -> bool:
    """A name on one side alone does not contradict."""
    return not one or not other or _key(one) == _key(other)


def _key(name: str) -> Hashable:
    return segment(name.strip()) or normalised(name.strip())


class Stated(NamedTuple):
    """An answer taken apart: ``x = 5 cm`` is name ``x``, body ``5``, unit ``cm``. Name and unit may be empty."""

    name: str
    body: str
    unit: str

    @property
    def equation(self) -> str:
        return f"{self.name} = {self.body}" if self.name else self.body


def stated(answer: str) -> Stated:
    """Take a cleaned answer apart."""
    name, value = named(answer)
    return Stated(name, *quantity(value))
