"""Several answers in one: ``1, 2``, ``x = 1 or x = 2``, ``x = 5, y = 3``."""

import re
from typing import NamedTuple

from stages.reward.rules.names import Named, named

_TOKEN = re.compile(
    r"(?P<open>[(\[]|\\\{|\{|\\begin\b)|(?P<close>[)\]]|\\\}|\}|\\end\b)"
    r"|(?P<thousands>(?<=[0-9]),(?=[0-9]{3}(?![0-9])))"
    r"|(?P<split>[,;]|(?<![^ }\])])(?:and|or|&)(?= |$)|\\(?:lor|vee|land|wedge)(?![a-zA-Z])|[和或与])|\\."
)


def items(text: str) -> list[str]:
    """The answers that commas, semicolons, ``and`` or ``or`` separate outside of brackets; one, where nothing does.

    A comma before a group of three digits belongs to the number.
    """
    found: list[str] = []
    depth = start = 0
    for token in _TOKEN.finditer(text):
        depth += bool(token["open"]) - bool(token["close"])
        if token["split"] and depth == 0:
            found.append(text[start : token.start()].strip())
            start = token.end()
    found.append(text[start:].strip())
    kept = [item for item in found if item]
    return kept if kept else [text]


class Several(NamedTuple):
    """Answers of one name, or each of its own."""

    names: list[str]
    values: list[str]
    in_braces: bool = False

    @property
    def is_assignment(self) -> bool:
        """Whether each has a name of its own: ``x = 5, y = 3``."""
        return len(set(self.names)) == len(self.names) and all(self.names)

    @property
    def in_order_of_names(self) -> list[Named]:
        return sorted(map(Named, self.names, self.values))


_SET = re.compile(r"\\\{(.*)\\\}", re.DOTALL)
_ALTERNATIVE = re.compile(r";| or |\\(?:lor|vee)(?![a-zA-Z])")


def _parts(text: str) -> list[str]:
    """Split at semicolons and ``or`` alone where what they part are assignments: ``x=1, y=2; x=3, y=4``."""
    alternatives = [part.strip() for part in _ALTERNATIVE.split(text) if part.strip()]
    if len(alternatives) > 1 and all(_as_point(part) != part for part in alternatives):
        return alternatives
    return items(text)


def _as_point(text: str) -> str:
    """``x = 1, y = 2`` as ``(1, 2)``, the names in their order; anything else as it is."""
    each = [named(part) for part in items(text)]
    names = [part.name.strip() for part in each]
    if len(each) < 2 or not all(names) or len(set(names)) < len(names):
        return text
    return f"({', '.join(value for _, value in sorted(each))})"


_TUPLE_OF_NAMES = re.compile(r"\(([^()]*)\)")


_ROWS = re.compile(r"\\begin\{cases\}(.*?)(?:\\\\ ?)?\\end\{cases\}")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z]) ?")


def _without_signs(text: str) -> str:
    """The rows of ``cases`` as a list, and ``1 \\pm \\sqrt{2}`` as its two values."""
    if rows := _ROWS.fullmatch(text):
        return rows[1].replace(r"\\", ", ").replace("&", "")
    if r"\pm" not in text:
        return text
    return ", ".join(value for part in items(text) for value in _both(part))


def _both(text: str) -> list[str]:
    """The values of a formula with one ``\\pm``; with several the signs are not free, and it stays."""
    if len(_PLUS_MINUS.findall(text)) != 1:
        return [text]
    return [_PLUS_MINUS.sub(sign, text) for sign in ("+", "-")]


def several(text: str) -> Several | None:
    """The answers of a list, of a set in braces, or of a ``\\pm``; None where there is one."""
    whole = named(text)
    bare = _SET.fullmatch(whole.value)
    inside = bare[1] if bare and len(items(text)) == 1 else text
    parts = [_as_point(part) for part in _parts(_without_signs(inside))]
    if len(parts) < 2:
        return None
    each = [named(part) for part in parts]
    if whole.name and bare:
        each = [Named(whole.name, part) for part in parts]
    elif each[0].name and not any(part.name for part in each[1:]):
        each = [Named(each[0].name, part.value) for part in each]
    return Several([part.name.strip() for part in each], [part.value for part in each], in_braces=inside != text)


_COORDINATES = re.compile(r"\( ?([xyz]) ?, ?([xyz])(?: ?, ?([xyz]))? ?\)")


def with_axes_in_order(text: str) -> str:
    """``(y, x) = (3, 4)`` as ``(x, y) = (4, 3)``; other names have no order of their own."""
    name, value = named(text)
    axes, members = _COORDINATES.fullmatch(name), tuple_of(value)
    names = [axis for axis in axes.groups() if axis] if axes else []
    if members is None or len(names) != len(members) or names == sorted(names):
        return text
    each = sorted(zip(names, members, strict=True))
    return f"({', '.join(axis for axis, _ in each)}) = ({', '.join(member for _, member in each)})"


def tuple_of(text: str) -> list[str] | None:
    """The members of ``(a, b)``, None for anything else."""
    inside = _TUPLE_OF_NAMES.fullmatch(text)
    members = items(inside[1]) if inside else []
    return members if len(members) > 1 else None
