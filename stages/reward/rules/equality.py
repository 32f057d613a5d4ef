"""Is one answer the other? Decided by text and exact numbers where they suffice, else left to a worker."""

import re
from collections.abc import Hashable
from fractions import Fraction
from typing import NamedTuple

from stages.reward.rules.figures import figure, with_symbols
from stages.reward.rules.lists import Several, items, several, tuple_of
from stages.reward.rules.names import HEDGES, Stated, named, names_agree, stated
from stages.reward.rules.quantities import number, quantity, units_agree
from stages.reward.rules.ranges import Range, as_range
from stages.reward.rules.typography import normalised

Verdict = float | None
"""1.0 right, 0.0 wrong, None cannot be scored: neither 0 nor 1, to be counted and left out of means."""


class Comparison(NamedTuple):
    """Two answers, as LaTeX, whose equality only a worker can decide; the response must also round to `rounded`."""

    gold: str
    response: str
    rounded: str = ""


def _left_to_worker(gold: str, response: str, rounded: str = "") -> Verdict | Comparison:
    if not rounded and normalised(gold) == normalised(response):
        return 1.0
    one, other = with_symbols(gold, response)
    return Comparison(one, other, rounded)


def compare(text: str, gold: str) -> Verdict | Comparison:
    """Whether a cleaned final answer is the cleaned gold."""
    if normalised(text) == normalised(gold):
        return 1.0
    if (key := figure(gold)) is not None:
        return float(figure(text) == key)
    gold = _without_lead_in(gold)
    text = _without_reason(_without_lead_in(text), gold)
    wanted, found = as_range(gold), as_range(text, either=True)
    if wanted is not None and found is not None:
        return _compare_ranges(found, wanted)
    gold_list = several(gold)
    if gold_list is not None:
        in_words = is_prose(gold_list.values[0])
        return float(_words(text) == _words(gold)) if in_words else _compare_lists(text, gold, gold_list)
    members, final_list = tuple_of(named(gold).value), several(text)
    if members is not None and final_list is not None and final_list.is_assignment:
        return _compare_members([value for _, value in final_list.in_order_of_names], members)
    return _compare_one(text, gold)


_LEAD_IN = re.compile(
    r"(?:(?:therefore|thus|hence|so|then|answer)[,:]? |(?:we|i) (?:find|get|have|see|conclude|obtain)(?: that)? "
    r"|(?:the|our|my) (?:final |correct )?(?:answer|solution|result) is |it follows that )+",
    re.IGNORECASE,
)
_LEAD_OUT = re.compile(r",? is (?:the|our|my) (?:final |correct )?(?:answer|solution|result)$", re.IGNORECASE)
_BECAUSE = re.compile(r",? (?:because|since) [A-Za-z ,']{1,200}$")
_POINT = re.compile(r"(?:the )?(?:point|ordered pair|coordinates(?: are)?):? ?(?=\()", re.IGNORECASE)
_SUBJECT = re.compile(r"([A-Za-z][^0-9=<>]{1,120}?)(?: is| are| equals|:) (?=[^A-Za-z]|(?!an? )[A-Za-z](?![a-z])|\\)")


def _without_lead_in(text: str) -> str:
    """``Therefore x > 5 is the solution`` states ``x > 5``, and ``The largest value is 34`` states 34."""
    lead = _LEAD_IN.match(text)
    text = _POINT.sub("", _LEAD_OUT.sub("", text[lead.end() :] if lead else text), count=1).strip() or text
    subject = _SUBJECT.match(text)
    if subject is None or not (" " in subject[1] or len(subject[1]) < 3) or HEDGES & set(subject[1].lower().split()):
        return text
    return text[subject.end() :].strip() or text


_OR = re.compile(r"\bor\b|或")


def _words(text: str) -> tuple[bool, list[str]]:
    """The words of a list, in its order, and whether they are alternatives."""
    return _OR.search(text) is not None, [fold(item) for item in items(text)]


def _without_reason(text: str, gold: str) -> str:
    """``42 because the halves are equal`` states 42; a reason with a number or a hedge stays."""
    reason = _BECAUSE.search(text)
    if reason is None or _BECAUSE.search(gold) or HEDGES & set(reason[0].lower().replace(",", " ").split()):
        return text
    return text[: reason.start()]


def _compare_ranges(found: Range, wanted: Range) -> Verdict | Comparison:
    alike = found.intervals[0] == wanted.intervals[0] and found.intervals[-1] == wanted.intervals[-1]
    named_alike = not found.name or not wanted.name or found.name == wanted.name
    return _left_to_worker(wanted.intervals, found.intervals) if alike and named_alike else 0.0


def _compare_lists(text: str, gold: str, wanted: Several) -> Verdict | Comparison:
    """Several answers are right in any order; those with names of their own, each under its name."""
    found, members = several(text), tuple_of(named(text).value)
    if wanted.is_assignment:
        if found is not None and found.is_assignment:
            same = sorted(map(normalised, found.names)) == sorted(map(normalised, wanted.names))
            return _compare_members(_by_name(found), _by_name(wanted)) if same else 0.0
        if members is not None:
            return _compare_members(members, _by_name(wanted))
        unnamed = found is not None and not any(found.names)
        return _compare_members(found.values, wanted.values) if found is not None and unnamed else 0.0
    if found is None:
        return _compare_one(text, _joined(wanted) if not gold.startswith(r"\{") else gold)
    if not found.is_assignment and not names_agree(found.names[0], wanted.names[0]):
        return 0.0
    if found.is_assignment and any(wanted.names):
        return 0.0
    return _compare_in_any_order(found, wanted)


def _by_name(answers: Several) -> list[str]:
    return [value for _, value in answers.in_order_of_names]


def _joined(answers: Several) -> str:
    return ", ".join(quantity(value).body for value in answers.values)


def _compare_in_any_order(found: Several, wanted: Several) -> Verdict | Comparison:
    keys = [_keys(answers) for answers in (found, wanted)]
    if keys[0] is not None and keys[1] is not None:
        return float(_each_in(keys[0], keys[1]) and _each_in(keys[1], keys[0]))
    units = {quantity(value).unit for value in found.values + wanted.values} - {""}
    if len(units) > 1 or not _words_allowed(_joined(found), _joined(wanted)):
        return 0.0
    return _left_to_worker(_joined(wanted), _joined(found))


Key = tuple[Hashable, str]
"""Value, figure or word of an answer, and its unit."""


def _keys(answers: Several) -> list[Key] | None:
    found = [_key(value) for value in answers.values]
    return [key for key in found if key is not None] if all(found) else None


def _key(text: str) -> Key | None:
    body, unit = quantity(_without_brackets(text))
    if (value := number(body)) is not None:
        return value, unit
    if (named_figure := figure(text)) is not None:
        return named_figure, ""
    return (fold(text), "") if is_text(text) else None


def _each_in(ones: list[Key], others: list[Key]) -> bool:
    return all(any(one[0] == other[0] and units_agree(one[1], other[1]) for other in others) for one in ones)


def _compare_members(values: list[str], members: list[str]) -> Verdict | Comparison:
    """Answers in order, as of a point."""
    if len(values) != len(members):
        return 0.0
    keys = [(_key(value), _key(member)) for value, member in zip(values, members, strict=True)]
    if all(one is not None and other is not None for one, other in keys):
        return float(all(one and other and _each_in([one], [other]) for one, other in keys))
    point, wanted = (f"({', '.join(quantity(each).body for each in side)})" for side in (values, members))
    return _left_to_worker(wanted, point) if _words_allowed(point, wanted) else 0.0


def _compare_one(text: str, gold: str) -> Verdict | Comparison:
    gold, text = _with_rounding_behind(gold), _with_rounding_behind(text)
    wanted, final = stated(gold), stated(text)
    if r"\approx" in wanted.body:
        exact, _, rounded = gold.rpartition(r"\approx")
        nearly = _compare_one(text, wanted._replace(body=rounded.strip()).equation)
        return nearly if nearly == 1.0 else _compare_one(text, exact.strip())
    exact, _, rounded = final.body.partition(r"\approx")
    if rounded:
        return _compare_rounded(final, quantity(exact.strip()).body, rounded.strip(), wanted)
    wanted, final = (part._replace(body=_without_brackets(part.body)) for part in (wanted, final))
    gold_value, value = _one_value(gold, wanted.body), number(final.body)
    if gold_value is not None:
        right = value == gold_value or _chain(text) == {gold_value}
        return float(right and names_agree(final.name, wanted.name) and units_agree(final.unit, wanted.unit))
    if is_text(wanted.body):
        same = _as_text(_with_sign(final, wanted)) == _as_text(_with_sign(wanted, final))
        return float(same and names_agree(final.name, wanted.name))
    if not units_agree(final.unit, wanted.unit) or not _same_form(wanted.body, final.body):
        return 0.0
    if not _words_allowed(final.body, wanted.body):
        return 0.0
    return _by_worker(final, value, wanted)


def _with_rounding_behind(text: str) -> str:
    """A rounding in parentheses as one behind a sign; a sign before the whole of it says nothing."""
    return _ROUNDED.sub(r"\\approx \1", text.removeprefix(r"\approx").strip())


def _by_worker(final: Stated, value: Fraction | None, wanted: Stated) -> Verdict | Comparison:
    if _is_equation(wanted.body) and not _is_equation(final.equation):
        return 0.0
    if "=" in wanted.body or not names_agree(final.name, wanted.name):
        return _left_to_worker(wanted.equation, final.equation)
    if "=" in final.body:
        # "3 = x" would pass for x; only a name to the left of the sign is no claim of its own.
        return _left_to_worker(wanted.equation, final.body) if wanted.name else 0.0
    # A fraction is exact; Math-Verify rounds decimals before it compares them.
    exact = f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if value is not None else final.body
    return _left_to_worker(wanted.body, exact)


def _is_equation(formula: str) -> bool:
    """Whether it equates something outside of braces, unlike ``\\sum_{n=0}``."""
    return "=" in re.sub(r"\{[^{}]*\}", "", formula)


def _compare_rounded(final: Stated, exact: str, rounded: str, wanted: Stated) -> Verdict | Comparison:
    """``\frac{1}{3} \approx 0.333``: an exact value and its rounding are one answer, and right in either form."""
    if not (DECIMAL.fullmatch(rounded) and names_agree(final.name, wanted.name)):
        return 0.0
    if not units_agree(final.unit, wanted.unit):
        return 0.0
    gold_value, value = number(wanted.body), number(exact)
    if value is not None:
        return float(rounds_to(value, rounded) and gold_value in (value, Fraction(rounded)))
    if not _words_allowed(exact, wanted.body) and gold_value is None:
        return 0.0
    if gold_value is not None:
        return _left_to_worker(exact, exact, rounded) if gold_value == Fraction(rounded) else 0.0
    return _left_to_worker(wanted.body, exact, rounded) if _same_form(wanted.body, exact) else 0.0


_ROUNDED = re.compile(r"\( ?(?:\\approx|approximately|approx\.?|about|roughly) ?(-?[0-9.]+[^()]*)\)$")
DECIMAL = re.compile(r"-?[0-9]*\.?[0-9]+")


def rounds_to(value: Fraction, rounded: str) -> bool:
    """Whether a value is within half a unit of the last place that is stated."""
    return abs(value - Fraction(rounded)) * 2 * 10 ** len(rounded.partition(".")[2]) <= 1


def _without_brackets(body: str) -> str:
    """Without parentheses around the whole of a fraction or a formula; ``(5)`` may be a label, and stays."""
    inside = body[1:-1].strip()
    if body[:1] != "(" or body[-1:] != ")" or inside.isalnum() or len(items(body)) > 1 or len(items(inside)) > 1:
        return body
    depth = 0
    for sign in inside:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            return body
    return inside


def _one_value(text: str, body: str) -> Fraction | None:
    """The value of a plain number, stated once or as equal ones: ``\\frac{3}{2} = 1.5``."""
    value, chain = number(body), _chain(text)
    return chain.pop() if value is None and len(chain) == 1 else value


def _chain(text: str) -> set[Fraction | None]:
    """The values of ``x = y = \frac{3}{2} = 1.5``, without its names."""
    parts = [part.strip() for part in text.split("=")]
    while len(parts) > 1 and named(f"{parts[0]} = 1").name:
        del parts[0]
    return {number(quantity(part).body) for part in parts} if "=" in text else set()


_CHOICE = re.compile(r"\(?([A-Ja-j])\)?")
_CODE = re.compile(r"[0-9]+(?:(?:[-/ ]| to | ?: ?)[0-9]+)+")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_MATH_SIGNS = re.compile(r"[0-9+*/^=<>()\[\]{}|_]")
_FUNCTIONS = {"sqrt", "pi", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "infinity", "inf"}
_FUNCTIONS |= {"max", "min", "gcd", "lcm", "mod", "det"}
_COMMAND = re.compile(
    r"\\(?:begin|end) ?\{\w+\}|\\(?:operatorname|mathbb|mathcal|variable|text\w*) ?\{[^{}]*\}|\\[a-zA-Z]+"
)


def is_text(gold: str) -> bool:
    """Whether a gold is a choice letter, a code such as 10:30, or words: compared by text alone."""
    return bool(_CHOICE.fullmatch(gold) or _CODE.fullmatch(gold)) or is_prose(gold)


def is_prose(gold: str) -> bool:
    """Whether a gold is in words."""
    words = [word for word in _LETTERS.findall(gold) if word.lower() not in _FUNCTIONS]
    prose = any(len(word) > 2 for word in words) or (bool(words) and not _MATH_SIGNS.search(gold))
    return prose and "\\" not in gold


def fold(text: str) -> str:
    """A text as texts are compared: apart from case, and from spaces that part no words."""
    choice = _CHOICE.fullmatch(text)
    return (choice[1] if choice else normalised(" ".join(text.split()))).casefold()


_TO = re.compile(r"(?<=[0-9]) to (?=[0-9])")


def _with_sign(one: Stated, other: Stated) -> Stated:
    """``3 to 4`` as the ratio ``3:4`` or the range ``3-4``, whichever stands on the other side."""
    sign = ":" if ":" in other.body else "-" if "-" in other.body else " to "
    return one._replace(body=_TO.sub(sign, one.body))


def _as_text(part: Stated) -> str:
    return fold(f"{part.body} {part.unit}")


def _words_allowed(final: str, gold: str) -> bool:
    """Whether a formula holds no word but those of the gold: a worker would multiply its letters."""
    words = [word for word in _LETTERS.findall(_COMMAND.sub(" ", final)) if len(word) > 2]
    return all(word.lower() in _FUNCTIONS or word in gold or set(word) <= set(gold) for word in words)


_DEFERRED = re.compile(
    r"\\(?:i*int|sum|prod|lim|binom|det)(?![a-zA-Z])|!|(?<=[0-9])(?<!frac[0-9])(?<!frac [0-9]) (?=[0-9])"
)
_ORDERED = re.compile(r"[(\[][^,]*,.*[)\]]")


_PRIMED = re.compile(r"[A-Za-z0-9)] ?(?:'+|\^ ?\{? ?(?:\\prime ?)+\}?)")


def _same_form(gold: str, final: str) -> bool:
    if bool(_PRIMED.search(final)) != bool(_PRIMED.search(gold)):
        return False
    if set(_DEFERRED.findall(final)) - set(_DEFERRED.findall(gold)):
        return False
    if gold.startswith(r"\{") and _ORDERED.fullmatch(final):
        return False
    return not _ORDERED.fullmatch(gold) or (final.startswith(gold[0]) and final.endswith(gold[-1]))
