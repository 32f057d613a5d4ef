"""JSON and YAML that others wrote: what stands under a key, and the strings in it, however deep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def named(value: Any, name: str) -> Iterator[Any]:
    """Every value under this key, but for those inside another one."""
    if isinstance(value, dict) and name in value:
        yield value[name]
    for key, part in _parts(value):
        if key != name:
            yield from named(part, name)


def texts(value: Any) -> Iterator[str]:
    """Every string in it; of a mapping, in its values."""
    if isinstance(value, str):
        yield value
    for _, part in _parts(value):
        yield from texts(part)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)
