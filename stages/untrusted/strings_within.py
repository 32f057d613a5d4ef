"""JSON and YAML that others wrote: what stands under a key, and the strings in it, however deep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def named(value: Any, name: str) -> Iterator[Any]:
    """Every value under this key."""
    for part in _parts(value):
        if isinstance(part, dict) and name in part:
            yield part[name]


def texts(value: Any) -> Iterator[str]:
    """Every string in it; of a mapping, in its values."""
    for part in _parts(value):
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        yield from (text for text in inner if isinstance(text, str))
    if isinstance(value, str):
        yield value


def _parts(value: Any) -> Iterator[Any]:
    """It and every mapping and list in it, once each: YAML's aliases can make few of them look like billions."""
    waiting, seen = [value], {id(value)}
    while waiting:
        part = waiting.pop()
        yield part
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        for one in inner:
            if isinstance(one, dict | list) and id(one) not in seen:
                seen.add(id(one))
                waiting.append(one)
