"""Geometric names as names: an angle read backwards is the same angle, another vertex is another one."""

import re
from collections.abc import Hashable

_PRIMED = r"[A-Z](?:'|_\{?[0-9]\}?)*"
_VERTICES = re.compile(_PRIMED)
_POINTS = rf"(?:{_PRIMED})+"

_KINDS = {
    "angle": "angle",
    "triangle": "polygon",
    "square": "polygon",
    "quadrilateral": "polygon",
    "parallelogram": "polygon",
    "rectangle": "polygon",
    "rhombus": "polygon",
    "trapezoid": "polygon",
    "pentagon": "polygon",
    "hexagon": "polygon",
    "polygon": "polygon",
    "overline": "segment",
    "segment": "segment",
    "overleftrightarrow": "line",
    "line": "line",
    "overrightarrow": "ray",
    "ray": "ray",
    "vec": "ray",
    "widehat": "arc",
    "arc": "arc",
    "overset\\frown": "arc",
    "odot": "circle",
    "circle": "circle",
}
"""Commands and words that say what the letters behind them name, and what reads the same."""
_FIGURE = re.compile(
    rf"(?:m ?(?=\\?angle))?\\?(?P<kind>{'|'.join(map(re.escape, _KINDS))})(?![a-zA-Z])(?: of)? ?"
    rf"(?:\{{ ?(?P<braced>{_POINTS}) ?\}}|(?P<plain>{_POINTS}|[0-9](?![0-9])))",
    re.IGNORECASE,
)
_LINE = re.compile(r"\\ell|[a-z](?:_[0-9])?")
_FROWN = re.compile(r"\\overset ?\{ ?\\(?:frown|smile) ?\}")
_NUMBERED_OR_LOWER = re.compile(r"\\angle ?(?:\{ ?(?P<braced>[a-z0-9]) ?\}|(?P<plain>[a-z0-9]))")
_LETTERS = re.compile(rf"\|?({_POINTS})\|?")


def figure(text: str) -> Hashable | None:
    """A key that is equal for the names of one figure, or one relation of figures; None for anything else.

    ``\\angle ABC`` and ``\\angle CBA``; a polygon from another corner or the other way round; a segment from either
    end, but not a ray. Parallel, perpendicular and cut sets read from both sides; in a similarity or congruence the
    corners correspond.
    """
    text = _FROWN.sub(r"\\overset\\frown", text).strip()
    for sign in _RELATIONS:
        sides = [side.strip() for side in re.split(rf"{re.escape(sign)}(?![a-z])", text)]
        if len(sides) == 2:
            return _relation(sign, *sides)
    return _named(text)


_RELATIONS = (r"\parallel", r"\perp", r"\sim", r"\cong", r"\cup", r"\cap", r"=")
_MATCHED = (r"\sim", r"\cong")


def _relation(sign: str, left: str, right: str) -> Hashable | None:
    if sign in _MATCHED and (pairs := _correspondence(left, right)):
        return sign, pairs
    sides = [(segment if sign == "=" else _side)(side) for side in (left, right)]
    return (sign, frozenset(sides)) if all(sides) else None


def _side(text: str) -> Hashable | None:
    """A figure, letters alone, or a line named by a small letter."""
    return _named(text) or _letters(text) or (text if _LINE.fullmatch(text) else None)


def _correspondence(left: str, right: str) -> Hashable | None:
    """Which corner of one polygon matches which of the other, whichever is named first."""
    names = [_kind_and_points(side) for side in (left, right)]
    if any(name is None or name[0] != "polygon" for name in names):
        return None
    points, others = (name[1] for name in names if name)
    if len(points) != len(others):
        return None
    pairs = tuple(zip(points, others, strict=True))
    return frozenset({_around(pairs), _around(tuple((b, a) for a, b in pairs))})


def _kind_and_points(text: str) -> tuple[str, tuple[str, ...]] | None:
    match = _FIGURE.fullmatch(text)
    if match is None:
        return None
    letters = match["braced"] or match["plain"]
    if not letters.isdigit() and not letters[0].isupper():
        return None
    points = tuple(_VERTICES.findall(letters)) or (letters,)
    return _KINDS[match["kind"].lower()], tuple(re.sub(r"[_{}]", "", point) for point in points)


def _named(text: str) -> Hashable | None:
    if found := _kind_and_points(text):
        kind, points = found
        return kind, _read_alike(kind, points)
    if small := _NUMBERED_OR_LOWER.fullmatch(text):
        return "angle", (small["braced"] or small["plain"],)
    return None


def _read_alike(kind: str, points: tuple[str, ...]) -> tuple[object, ...]:
    if kind == "polygon" and len(points) > 2:
        return _around(points)
    return points if kind == "ray" else min(points, points[::-1])


def _around(points: tuple[object, ...]) -> tuple[object, ...]:
    """The same corners from the least one, the way round that reads less."""
    ways = (points, points[::-1])
    return min((way[start:] + way[:start] for way in ways for start in range(len(way))), key=repr)


def _letters(text: str) -> Hashable | None:
    """Letters alone, beside a relation: a segment, or a set of one letter."""
    match = _LETTERS.fullmatch(text)
    if match is None:
        return None
    points = tuple(_VERTICES.findall(match[1]))
    return "segment", min(points, points[::-1])


def segment(text: str) -> Hashable | None:
    """The key of a length's name: ``AB``, ``|AB|`` and ``\\overline{BA}`` are one."""
    named = _named(text)
    if named is None:
        match = _LETTERS.fullmatch(text)
        return _letters(text) if match and len(_VERTICES.findall(match[1])) == 2 else None
    return named


_NAME_INSIDE = re.compile(
    rf"\\(?:{'|'.join(kind for kind in _KINDS if kind.isalpha())})(?![a-zA-Z]) ?(?:\{{ ?{_POINTS} ?\}}|{_POINTS})"
    r"|(?<![A-Za-z\\])[A-Z]{2,6}(?![A-Za-z])"
)


def with_symbols(*formulas: str) -> list[str]:
    """The formulas with a symbol of its own for each figure, where all of them name one: letters are not multiplied.

    ``AB \\cdot CD`` is not ``AC \\cdot BD``, and is ``DC \\cdot BA``.
    """
    if not all(_NAME_INSIDE.search(formula) for formula in formulas):
        return list(formulas)
    numbers: dict[Hashable, int] = {}

    def symbol(name: re.Match[str]) -> str:
        key = _named(name[0]) or _letters(name[0])
        return f" x_{{{900 + numbers.setdefault(key, len(numbers))}}} "

    return [_NAME_INSIDE.sub(symbol, formula) for formula in formulas]
