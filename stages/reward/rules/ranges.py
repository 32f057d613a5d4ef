"""Inequalities, intervals and sets by a condition, as intervals of a name."""

import re
from typing import NamedTuple

from stages.reward.rules.lists import items
from stages.reward.rules.names import Named, named

_VARIABLE = r"(?:[a-zA-Z](?:_\w|_\{\w+\})?(?:\([a-z]\))?|\\(?!infty|pi(?![a-z]))[a-z]+)"
_IS_VARIABLE = re.compile(_VARIABLE)
_SIGN = re.compile(r" ?(\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|\\neq(?![a-zA-Z])|<|>) ?")
_BUILDER = re.compile(rf"\\\{{ ?({_VARIABLE}) ?(?:\\in ?(?:\\mathbb ?\{{ ?R ?\}}|R) ?)?[:|] ?(.+?) ?\\\}}")
_NAME = re.compile(rf"(?<![a-zA-Z\\]){_VARIABLE}(?![a-zA-Z])")
_BRACKETS = re.compile(r"[(\[].*[)\]]")
_REALS_BUT = re.compile(r"\\mathbb ?\{ ?R ?\} ?(?:\\setminus|\\backslash|-) ?\\\{([^,;{}]+)\\\}")
_REALS = re.compile(r"\\mathbb ?\{ ?R ?\}")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\neq": r"\neq"}
_AND = re.compile(r" and | ?\\(?:land|wedge)(?![a-zA-Z]) ?")
_UNION = re.compile(r" ?\\cup(?![a-zA-Z]) ?| or | ?\\(?:lor|vee)(?![a-zA-Z]) ?")


class Range(NamedTuple):
    """``-2 \\le x < 7`` is name ``x`` and interval ``[-2, 7)``; the name may be empty."""

    name: str
    intervals: str

    @property
    def brackets(self) -> list[str]:
        """Those of each interval, in an order that does not depend on theirs."""
        return sorted(interval[0] + interval[-1] for interval in self.intervals.split(r" \cup "))


def as_range(text: str, *, either: bool = False) -> Range | None:
    """An inequality, an interval, a union of them, or the real numbers but one; None for anything else.

    ``(1, 2)`` is a point or an interval: it counts only where ``either`` will do.
    """
    parts = [_one(part, either) for part in _UNION.split(_condition(text))]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    names = {part.name for part in known if part.name}
    if len(names) > 1:
        return None
    return Range("".join(names), r" \cup ".join(part.value for part in known))


def _condition(text: str) -> str:
    """What ``\\{x \\mid x > 2\\}`` says of x; the whole text where it says it of another name."""
    built = _BUILDER.fullmatch(text)
    names = set(_NAME.findall(built[2])) if built else set()
    return built[2] if built and built[1] in names else text


def _both(parts: list[str], either: bool) -> Named | None:
    """``x > 0`` and ``x < 1`` are ``(0, 1)``."""
    halves = [_one(part, either) for part in parts]
    low = next((half for half in halves if half and half.value.endswith(r", \infty)")), None)
    high = next((half for half in halves if half and half.value.startswith(r"(-\infty, ")), None)
    if len(halves) != 2 or low is None or high is None or low.name != high.name:
        return None
    return Named(low.name, low.value.removesuffix(r"\infty)") + high.value.removeprefix(r"(-\infty, "))


def _one(text: str, either: bool) -> Named | None:
    if len(conditions := _AND.split(text)) > 1:
        return _both(conditions, either)
    name, value = named(text)
    if _REALS.fullmatch(value):
        return Named(name, r"(-\infty, \infty)")
    if left_out := _REALS_BUT.fullmatch(value):
        return Named(name, _all_but(left_out[1]))
    if _BRACKETS.fullmatch(value) and len(items(value[1:-1])) == 2:
        plain = value[0] == "(" and value[-1] == ")" and r"\infty" not in value
        certain = not plain or (name and r"\in" in text)
        return Named(name, value.replace(";", ",")) if certain or either else None
    pieces = _SIGN.split(text.strip())
    if len(pieces) == 3:
        return _half(*pieces)
    if len(pieces) == 5:
        return _between(*pieces)
    return None


def _all_but(value: str) -> str:
    return rf"(-\infty, {value}) \cup ({value}, \infty)"


def _half(left: str, sign: str, right: str) -> Named | None:
    if _IS_VARIABLE.fullmatch(right) and not _IS_VARIABLE.fullmatch(left):
        left, sign, right = right, _FLIPPED[sign], left
    if not _IS_VARIABLE.fullmatch(left) or not right or _IS_VARIABLE.fullmatch(right):
        return None
    if sign == r"\neq":
        return Named(left, _all_but(right))
    if sign in ("<", r"\le"):
        return Named(left, rf"(-\infty, {right}{')' if sign == '<' else ']'}")
    return Named(left, rf"{'(' if sign == '>' else '['}{right}, \infty)")


def _between(low: str, first: str, variable: str, second: str, high: str) -> Named | None:
    if first in (">", r"\ge"):
        low, first, second, high = high, _FLIPPED[second], _FLIPPED[first], low
    if not _IS_VARIABLE.fullmatch(variable) or not low or not high or {first, second} - {"<", r"\le"}:
        return None
    return Named(variable, f"{'(' if first == '<' else '['}{low}, {high}{')' if second == '<' else ']'}")
