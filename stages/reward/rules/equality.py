"""Is one answer the other? Decided by text and exact numbers where they suffice, else left to a worker."""

import re
from collections.abc import Hashable
from fractions import Fraction
from typing import NamedTuple

from stages.reward.rules.figures import figure, with_symbols
from stages.reward.rules.lists import Several, items, several, tuple_of, with_axes_in_order
from stages.reward.rules.names import HEDGES, Stated, named, names_agree, stated
from stages.reward.rules.quantities import number, quantity, units_agree
from stages.reward.rules.ranges import Range, as_range
from stages.reward.rules.typography import ARTICLE, normalised

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
    if not _same_signs(gold, response):
        return 0.0
    one, other = with_symbols(gold.replace("°", r"^{\circ}"), response.replace("°", r"^{\circ}"))
    return Comparison(one, other, rounded)


def compare(text: str, gold: str) -> Verdict | Comparison:
    """Whether a cleaned final answer is the cleaned gold."""
    if normalised(text) == normalised(gold):
        return 1.0
    if (key := figure(gold)) is not None:
        return float(figure(text) == key)
    if not _same_subject(text, gold):
        return 0.0
    gold = with_axes_in_order(_without_lead_in(gold))
    text = with_axes_in_order(_without_reason(_without_lead_in(text), gold))
    wanted, found = as_range(gold), as_range(text, either=True)
    if wanted is not None and found is not None:
        return _compare_ranges(found, wanted)
    if not any(tuple_of(named(side).value) for side in (gold, text)):
        gold, text = _said_once(gold), _said_once(text)
    gold_list = several(gold)
    if gold_list is not None:
        in_words = is_prose(gold_list.values[0])
        return float(_words(text) == _words(gold)) if in_words else _compare_lists(text, gold, gold_list)
    members, final_list = tuple_of(named(gold).value), several(text)
    if members is not None and final_list is not None and final_list.is_assignment:
        return _compare_members([value for _, value in final_list.in_order_of_names], members)
    if final_list is not None and not (is_prose(gold) or _SET_SIGN.search(gold + text)):
        return 0.0
    return _compare_one(text, gold)


def _said_once(text: str) -> str:
    """One answer that is said several times, once."""
    parts = items(text)
    return parts[0] if len(parts) > 1 and len(set(map(normalised, parts))) == 1 else text


_SET_SIGN = re.compile(r"[(\[]|\\(?:\{|cup|cap|pm|mp|begin|setminus|mathbb|emptyset)")
"""What may stand for several values, or for one with a comma in it."""
_LEAD_IN = re.compile(
    r"(?:(?:therefore|thus|hence|so|then|answer)[,:]? |(?:we|i) (?:find|get|have|see|conclude|obtain)(?: that)? "
    r"|(?:the|our|my) (?:final |correct )?(?:answer|solution|result) is |it follows that )+",
    re.IGNORECASE,
)
_LEAD_OUT = re.compile(r",? is (?:the|our|my) (?:final |correct )?(?:answer|solution|result)$", re.IGNORECASE)
_BECAUSE = re.compile(r",? (?:because|since) [A-Za-z ,']{1,200}$")
_POINT = re.compile(r"(?:the )?(?:point|ordered pair|coordinates(?: are)?):? ?(?=\()", re.IGNORECASE)
_SUBJECT = re.compile(
    r"(\\?[A-Za-z][^0-9=<>]{1,120}?)(?: is| are| equals|:) (?=[^A-Za-z]|(?!an? )[A-Za-z](?![a-z])|\\)"
)


def _without_lead_in(text: str) -> str:
    """``Therefore x > 5 is the solution`` states ``x > 5``, and ``The largest value is 34`` states 34."""
    lead = _LEAD_IN.match(text)
    text = _POINT.sub("", _LEAD_OUT.sub("", text[lead.end() :] if lead else text), count=1).strip() or text
    subject = _subject(text)
    return (text[subject.end() :].strip() if subject else "") or text


def _subject(text: str) -> re.Match[str] | None:
    """What a sentence says its value of."""
    subject = _SUBJECT.match(text)
    if subject is None or HEDGES & set(subject[1].lower().split()):
        return None
    long = " " in subject[1] or len(subject[1]) < 3 or subject[0].rstrip().endswith(":")
    return subject if long else None


def _same_subject(text: str, gold: str) -> bool:
    """Whether both sentences, where both are some, are about one thing: the cat's age is not the dog's."""
    subjects = _subject(text), _subject(gold)
    return not all(subjects) or len({fold(subject[1]) for subject in subjects if subject}) == 1


_OR = re.compile(r"\bor\b|或|\\lor(?![a-zA-Z])")
_CONDITION = re.compile(r"[<>]|\\(?:le|ge|neq|land|lor)(?![a-zA-Z])")
"""Where a comma, ``and`` and ``or`` do not mean the same."""


def _says_or(text: str) -> bool:
    return _OR.search(text) is not None


def _words(text: str) -> tuple[bool, list[str]]:
    """The words of a list, in its order, and whether they are alternatives."""
    return _says_or(text), [fold(item) for item in items(text)]


def _without_reason(text: str, gold: str) -> str:
    """``42 because the halves are equal`` states 42; a reason with a number or a hedge stays."""
    reason = _BECAUSE.search(text)
    if reason is None or _BECAUSE.search(gold) or HEDGES & set(reason[0].lower().replace(",", " ").split()):
        return text
    return text[: reason.start()]


def _compare_ranges(found: Range, wanted: Range) -> Verdict | Comparison:
    alike = found.brackets == wanted.brackets
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
    if _says_or(text) != _says_or(gold) and (_CONDITION.search(text) or _CONDITION.search(gold)):
        return 0.0
    if found is None:
        bare = gold if gold.startswith(r"\{") else _joined(wanted.values)
        return _compare_one(text, bare) if _SET_SIGN.search(text) else 0.0
    if not found.is_assignment and not names_agree(found.names[0], wanted.names[0]):
        return 0.0
    if found.is_assignment and any(wanted.names):
        return 0.0
    return _compare_in_any_order(found, wanted)


def _by_name(answers: Several) -> list[str]:
    return [value for _, value in answers.in_order_of_names]


def _joined(values: list[str]) -> str:
    return ", ".join(quantity(value).body for value in values)


def _compare_in_any_order(found: Several, wanted: Several) -> Verdict | Comparison:
    """Each as often, too: 45, 45 and 90 are not 45, 90 and 90. A point that is listed twice is one solution, and a set
    has each once.
    """
    once = _distinct if found.in_braces or wanted.in_braces else _points_once
    left, rest = once(wanted.values), []
    for value in once(found.values):
        twin = next((other for other in left if _same_value(value, other)), None)
        if twin is None:
            rest.append(value)
        else:
            left.remove(twin)
    if not rest and not left:
        return 1.0
    if len(rest) != len(left) or all(map(_key, rest + left)):
        return 0.0
    if any(map(_is_equation, rest)) != any(map(_is_equation, left)):
        return 0.0
    units = {quantity(value).unit for value in found.values + wanted.values} - {""}
    if len(units) > 1 or not _words_allowed(_joined(rest), _joined(wanted.values)):
        return 0.0
    return _left_to_worker(_joined(left), _joined(rest))


def _points_once(values: list[str]) -> list[str]:
    return list({normalised(v): v for v in values}.values()) if all(map(tuple_of, values)) else list(values)


def _distinct(values: list[str]) -> list[str]:
    kept: list[str] = []
    for value in values:
        if not any(_same_value(value, other) for other in kept):
            kept.append(value)
    return kept


def _same_value(one: str, other: str) -> bool:
    """By text, or as a number, figure or word with its unit."""
    key, wanted = _key(one), _key(other)
    return normalised(one) == normalised(other) or (key is not None and wanted is not None and _same_key(key, wanted))


Key = tuple[Hashable, str]
"""Value, figure or word of an answer, and its unit."""


def _key(text: str) -> Key | None:
    body, unit = quantity(_without_brackets(text))
    if (value := number(body)) is not None:
        return value, unit
    if (named_figure := figure(text)) is not None:
        return named_figure, ""
    return (fold(text), "") if is_text(text) else None


def _same_key(one: Key, other: Key) -> bool:
    return one[0] == other[0] and units_agree(one[1], other[1])


def _compare_members(values: list[str], members: list[str]) -> Verdict | Comparison:
    """Answers in order, as of a point."""
    if len(values) != len(members):
        return 0.0
    keys = [(_key(value), _key(member)) for value, member in zip(values, members, strict=True)]
    if all(one is not None and other is not None for one, other in keys):
        return float(all(one and other and _same_key(one, other) for one, other in keys))
    point, wanted = (f"({', '.join(quantity(each).body for each in side)})" for side in (values, members))
    return _left_to_worker(wanted, point) if _words_allowed(point, wanted) else 0.0


def _compare_one(text: str, gold: str) -> Verdict | Comparison:
    gold, text = _with_rounding_behind(gold), _with_rounding_behind(text)
    wanted = stated(gold)
    final = stated(_name_first(text, wanted.name))
    if r"\approx" in wanted.body:
        exact, _, rounded = gold.rpartition(r"\approx")
        nearly = _compare_one(text, wanted._replace(body=rounded.strip()).equation)
        return nearly if nearly == 1.0 else _compare_one(text, exact.strip())
    exact, _, rounded = final.body.partition(r"\approx")
    if rounded:
        return _compare_rounded(final, quantity(exact.strip()).body, rounded.strip(), wanted)
    wanted, final = (part._replace(body=_without_brackets(part.body)) for part in (wanted, final))
    gold_value, value = _one_value(gold, wanted.body), number(final.body)
    if gold_value is not None and (value is not None or not _POWER.match(wanted.body)):
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


def _name_first(text: str, name: str) -> str:
    """``7 = x`` as ``x = 7`` beside a gold that names x."""
    value, _, last = text.rpartition("=")
    return f"{name} = {value.strip()}" if name and value and normalised(last) == normalised(name) else text


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


_POWER = re.compile(r"-?10 ?\^")
"""A gold that is a number, and a formula too: \\frac{1}{100} is 10^{-2}."""


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
_CODE = re.compile(r"[0-9]+(?:(?:[-/ ]| to | ?: ?)[0-9]+)+(?: [ap]m)?|[0-9]+ [ap]m")
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
    """A text as texts are compared: apart from case, an article before it, and spaces that part no words."""
    choice = _CHOICE.fullmatch(text)
    return choice[1].casefold() if choice else ARTICLE.sub("", normalised(" ".join(text.split())).casefold(), count=1)


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


_PRIMED = re.compile(r"[A-Za-z0-9)}] ?(?:'+|\^ ?\{? ?(?:\\prime ?)+\}?)")


def _same_signs(gold: str, final: str) -> bool:
    """Whether no operation is left to do, and no prime drops out or comes in: a worker would not see it."""
    deferred = set(_DEFERRED.findall(final)) - set(_DEFERRED.findall(gold))
    return not deferred and bool(_PRIMED.search(final)) == bool(_PRIMED.search(gold))


def _same_form(gold: str, final: str) -> bool:
    if not _same_signs(gold, final):
        return False
    if gold.startswith(r"\{") and _ORDERED.fullmatch(final):
        return False
    return not _ORDERED.fullmatch(gold) or (final.startswith(gold[0]) and final.endswith(gold[-1]))
