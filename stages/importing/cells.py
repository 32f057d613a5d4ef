"""A row's cells, and the reason why a row does not fit."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

LIST_CHARS = 20_000
"""A list that is written out as text is not read beyond this length."""


class Unfit(Exception):
    """A row cannot become a problem; its text is the reason, as it is counted, `detail` what it is about."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason)
        self.detail = detail


def cell(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, None where there is none; `a.b` is the field b of the struct a, `a|b?` as in a layout."""
    if name in row:
        return row[name]
    if len(names := alternatives(name)) > 1 or names[0] != name:
        return next((value for column in names if (value := cell(row, column)) is not None), None)
    first, _, rest = name.partition(".")
    inner = row.get(first)
    return cell(inner, rest) if rest and isinstance(inner, Mapping) else None


def alternatives(name: str) -> list[str]:
    """The columns that a layout names in one place: `a|b?` is a or b."""
    return name.removesuffix("?").split("|")


def text(value: Any) -> str:
    """A cell as text: stripped, null and NaN as the empty text, a float that is whole as an integer.

    Raises:
        Unfit: `not_text`, as bytes, a list and a struct.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str):
        raise Unfit("not_text")
    try:
        written = str(value).strip()
        written.encode()
    except ValueError as error:  # too many digits, or half of a surrogate pair
        raise Unfit("not_text") from error
    return written


def as_list(value: Any) -> list[Any] | None:
    """A list, or one that is written out as text in JSON or Python; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("[") and len(value) <= LIST_CHARS:
        value = _parsed(value.strip())
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


def _parsed(written: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(written)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None
