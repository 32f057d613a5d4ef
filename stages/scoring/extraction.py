"""Where a text states its final answer, and how that answer reads. Pure functions; nothing is evaluated.

A final answer is the last ``\\boxed{...}``; without any box, what follows the last "answer is" or "Answer:" up to
the end of its sentence or line. There is no third way: a text without either has no final answer, and a text with
two conflicting ones means the last.
"""

import re
import unicodedata
from collections import deque
from fractions import Fraction
from typing import NamedTuple

MAX_ANSWER_CHARS = 1000
"""A longer final answer is none."""

_CUE = re.compile(r"\banswer(?: is\b|(?: is)?\**[:：])\**[:：]?", re.IGNORECASE)
_END = re.compile(r"\.(?=\s|$)|[\n。]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def final_answer(response: str) -> str | None:
    """The cleaned final answer of a response, or None where there is none or it exceeds MAX_ANSWER_CHARS.

    A last box that never closes (a response cut short) is no final answer: an earlier box was not meant as one.
    """
    box = response.rfind(r"\boxed{")
    stated = _boxed(response, box) if box >= 0 else _announced(response)
    return (clean(stated) or None) if stated is not None else None


def statement_start(response: str) -> int | None:
    """Index of the character where the final answer's statement begins, or None where there is none."""
    box = response.rfind(r"\boxed{")
    if box >= 0:
        return box
    last = _last_cue(response)
    return None if last is None else last.start()


def gold_answer(answer: str) -> str | None:
    """The cleaned reference answer, freed of ``\\boxed{}``, ``$`` and ``####``; None where nothing scorable is left."""
    box = answer.rfind(r"\boxed{")
    stated = _boxed(answer, box) if box >= 0 else answer.rpartition("####")[2]
    return clean(stated) or None if stated is not None and len(stated.strip()) <= MAX_ANSWER_CHARS else None


def _boxed(text: str, box: int) -> str | None:
    start = box + len(r"\boxed{")
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARS + 1):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()]
    return None


def _last_cue(text: str) -> re.Match[str] | None:
    return next(iter(deque(_CUE.finditer(text), maxlen=1)), None)


def _announced(text: str) -> str | None:
    last = _last_cue(text)
    if last is None:
        return None
    rest = text[last.end() :][: 2 * MAX_ANSWER_CHARS].lstrip()
    sentence = _END.split(rest, maxsplit=1)[0]
    return sentence if len(sentence) <= MAX_ANSWER_CHARS else None


_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:left|right|displaystyle)(?![a-zA-Z])|(?<!\\)\\!", ""),
        (r"(?<=[0-9])(?:\\,|\{,\})(?=[0-9]{3})", ","),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])", " "),
        (r"(?<!\\)\${1,2}([^$]+?)(?<!\\)\${1,2}", r" \1 "),
        (r"(?<!\\)\\[(\[](.+?)(?<!\\)\\[)\]]", r" \1 "),
        (r"[−–]", "-"),
        (r"≤|<=|\\leq(?![a-zA-Z])", r"\\le "),
        (r"≥|>=|\\geq(?![a-zA-Z])", r"\\ge "),
        (r"π", r"\\pi "),
        (r"∞", r"\\infty "),
        (r"∈", r"\\in "),
        (r"∅|\\varnothing(?![a-zA-Z])", r"\\emptyset "),
        (r"√\(?(\w+)\)?", r"\\sqrt{\1}"),
        (r"\s+", " "),
        (r"(?<![\w.,:/-])([0-9]+) ([0-9]+)/([0-9]+)(?![\w.,:/-])", r"\1\\frac{\2}{\3}"),
    ]
]
_SPACED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")
_TYPESET = str.maketrans(
    {chr(wide): chr(wide - 0xFEE0) for wide in range(0xFF01, 0xFF5F)}
    | {"。": "."}
    | dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", "")
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_FONT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boldsymbol|mbox)\s*\{([^{}]*)\}")


def clean(answer: str) -> str:
    """The answer without typography: math delimiters, emphasis, spacing commands and final punctuation.

    Decimal digits of any script (Arabic-Indic) and fullwidth forms become ASCII; superscripts become powers, never
    digits; spaces between thousands and characters without width go; ``1 1/2`` is ``1\\frac{1}{2}``.
    """
    answer = unicodedata.normalize("NFC", answer).translate(_TYPESET)
    answer = re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), answer)
    answer = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda power: f"^{{{power[0].translate(_SUPERSCRIPTS)}}}", answer)
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = _SPACED.sub(lambda thousands: thousands[0].replace(" ", ""), answer)
    while True:
        bare = re.sub(r"(?<![.\\])[.,;:]$", "", answer.strip(" *`"))
        if whole := _FONT.fullmatch(bare):
            bare = whole[1]
        if bare == answer:
            return bare
        answer = bare


_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
_EXPONENT = r"[+-]?[0-9]{1,3}"
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)\s*(?:
        (?P<decimal>{_DECIMAL})
        (?: [eE](?P<e>{_EXPONENT})
          | \s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*(?P<brace>\{{)?(?P<ten>{_EXPONENT})(?(brace)\}}) )?
      | \\frac\s*\{{\s*(?P<top>[+-]?{_INTEGER})\s*\}}\s*\{{\s*(?P<bottom>{_INTEGER})\s*\}}
      | \\frac\s*(?P<digit>[0-9])\s*(?P<under>[0-9])
      | (?P<over>{_INTEGER})\s*/\s*(?P<below>{_INTEGER})
    )""",
    re.VERBOSE,
)


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, or None.

    Plain: an integer, decimal or simple fraction (``a/b``, ``\\frac{a}{b}``), signed, with thousands commas or in
    scientific notation. ``1+1``, ``2^3``, ``3!``, ``1\\frac{1}{2}``, ``1/0`` and a list are not.
    """
    match = _NUMBER.fullmatch(text)
    if not match:
        return None
    part = {name: value.replace(",", "") for name, value in match.groupdict().items() if value}
    sign = -1 if part.get("sign") == "-" else 1
    if "decimal" in part:
        return sign * Fraction(part["decimal"]) * Fraction(10) ** int(part.get("e") or part.get("ten") or 0)
    top = part.get("top") or part.get("digit") or part["over"]
    bottom = int(part.get("bottom") or part.get("under") or part["below"])
    return sign * Fraction(int(top), bottom) if bottom else None


_UNITS = {
    name: line.split()[0]
    for line in """
        mm millimeter millimeters millimetre millimetres
        cm centimeter centimeters centimetre centimetres
        m meter meters metre metres
        km kilometer kilometers kilometre kilometres
        in inch inches
        ft foot feet
        yd yard yards
        mi mile miles
        mg milligram milligrams
        g gram grams
        kg kilogram kilograms
        oz ounce ounces
        lb lbs pound pounds
        ml mL milliliter milliliters millilitre millilitres
        l L liter liters litre litres
        ms millisecond milliseconds
        s sec second seconds
        min minute minutes
        h hr hrs hour hours
        day days
        week weeks
        month months
        yr year years
        Hz hertz
        N newton newtons
        J joule joules
        W watt watts
        V volt volts
        A ampere amperes
        K kelvin
        Pa pascal pascals
        rad radian radians
        ° degree degrees deg
        °C celsius
        °F fahrenheit
        % percent
        $ dollar dollars
        ¢ cent cents
        € euro euros
        £
        ¥ yen
        unit units
        mi/h mph
        km/h kmh kph
    """.strip().splitlines()
    for name in line.split()
}
_UNIT_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:text|mathrm|mbox|operatorname)\s*\{([^{}]*)\}", r" \1"),
        (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])", " °"),
        (r"°\s*([CF])$", r" °\1"),
        (r"\\([%$])", r"\1"),
        (r"^([+-]?) ?([$€£¥]) ?(.+)$", r"\1\3 \2"),
        (r"(?<=[0-9}])(?=[%°¢€£¥])|(?<=[0-9])(?=[a-zA-Z]+/|[a-zA-Z]{2,}(?:\^|$))", " "),
        (r" per ", "/"),
        (r"(?: |^)(?:square|sq\.?) ([a-zA-Z]+)", r" \1^2"),
        (r"(?: |^)(?:cubic|cu\.?) ([a-zA-Z]+)", r" \1^3"),
        (r" +", " "),
    ]
]
_UNIT_FACTOR = re.compile(r"([a-zA-Z]+|[°%$¢€£¥][CF]?)(?:\^(?:([23])|\{([23])\}))?")
# A constant is no name: \pi = 3 would pass for 3.
_LETTER = r"(?:[a-z]|[A-Z]{1,3}|\\(?!(?:pi|infty)(?![a-z_]))[a-z]+)"
_NAME = re.compile(rf"({_LETTER}(?:_\w|_\{{\w+\}})?(?:\([a-z]\))?) ?(?:=|\\in(?![a-zA-Z])) ?([^=]+)")


def unit(text: str) -> str | None:
    """The canonical name of a unit (``square centimeters`` and ``cm^{2}`` are ``cm^2``), None for anything else."""
    factors = []
    for factor in text.split("/"):
        match = _UNIT_FACTOR.fullmatch(factor.strip())
        name = match and (_UNITS.get(match[1]) or (_UNITS.get(match[1].lower()) if len(match[1]) > 3 else None))
        if not match or not name:
            return None
        power = match[2] or match[3]
        factors.append(f"{name}^{power}" if power else name)
    return "/".join(factors)


class Stated(NamedTuple):
    """An answer taken apart: ``x = 5 cm`` is name ``x``, body ``5``, unit ``cm``. Name and unit may be empty."""

    name: str
    body: str
    unit: str

    @property
    def equation(self) -> str:
        return f"{self.name} = {self.body}" if self.name else self.body


def stated(answer: str) -> Stated:
    """Take a cleaned answer apart; only a listed unit counts as one, so ``5 million`` keeps its million."""
    named = _NAME.fullmatch(answer)
    name, value = (named[1], named[2]) if named else ("", answer)
    spaced = value
    for pattern, replacement in _UNIT_REWRITES:
        spaced = pattern.sub(replacement, spaced)
    words = spaced.strip().split(" ")
    for count in range(min(3, len(words) - 1), 0, -1):
        if (found := unit(" ".join(words[-count:]))) is not None:
            return Stated(name, " ".join(words[:-count]), found)
    return Stated(name, value, "")
