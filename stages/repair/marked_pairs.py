"""Errors beside their repairs, out of the rows of `groups`, and their texts with the spans that the masks mark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

from stages.artifacts.overlay import MarkedToken
from stages.artifacts.rows import GroupRow
from stages.model.codec import Codec


def pair_of_each_problem(rows: Iterable[GroupRow]) -> list[tuple[GroupRow, GroupRow]]:
    """An error and its repair of each problem that has a pair, in the order of the rows."""
    pairs = {repair["problem_id"]: (error, repair) for error, repair in pairwise(rows) if repair["role"] == "repair"}
    return list(pairs.values())


def marked_runs(codec: Codec, ids: Sequence[int], mask: Iterable[bool]) -> list[MarkedToken]:
    """Runs of marked and of unmarked tokens, each decoded whole: a letter may be several tokens."""
    runs = groupby(zip(map(bool, mask), ids, strict=True), key=lambda token: token[0])
    return [MarkedToken(codec.tokenizer.decode([token for _, token in run]), marked) for marked, run in runs]
