"""Which rows of a dataset become the test problems: none of them shares an image with the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from stages.core.selection import share_of


def rows_to_test(problems: Iterable[tuple[int, Mapping[str, Any]]], share: float) -> set[int]:
    """Numbers of the rows that are tested on: whole groups of rows with a common image, at most this share of them all.

    Rows without an image go by their question. Which groups it is follows from their content, not from their order, so
    a longer dataset keeps them. Empty where every group is larger than the share.
    """
    first_of: dict[bytes, int] = {}
    joined: dict[int, int] = {}
    name: dict[int, bytes] = {}

    def root(row: int) -> int:
        while joined[row] != row:
            joined[row] = joined[joined[row]]
            row = joined[row]
        return row

    for row, problem in problems:
        joined[row] = row
        keys = [_digest(image["bytes"]) for image in problem["images"]] or [_digest(problem["question"].encode())]
        name[row] = min(keys)
        for key in keys:
            joined[root(row)] = root(first_of.setdefault(key, row))
    groups: dict[int, list[int]] = defaultdict(list)
    for row in joined:
        groups[root(row)].append(row)
    wanted = share_of(len(joined), share)
    chosen: set[int] = set()
    for rows in sorted(groups.values(), key=lambda rows: min(name[row] for row in rows)):
        if len(chosen) + len(rows) <= wanted:
            chosen.update(rows)
    return chosen


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=8).digest()
