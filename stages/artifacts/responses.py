"""Rows of `rollouts` and `groups` that contradict themselves, found before any compute.

Axes: R rows of one part of a file, T entries of all their lists, one row's after the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.artifacts.bad_rows import BadRow
from stages.artifacts.columns import TableSpec
from stages.artifacts.store import iterate_tables, parquet_files
from stages.errors import DataError

ROLES = ("correct", "error", "repair")
_LOGPROBS = ("sampler_logprobs", "old_logprobs")
_SCORES = ("entropies", "image_kls", "answer_gaps")
ROUNDING = 1e-3
"""How far above 0 a log-prob may be (our choice)."""


class Limits(NamedTuple):
    """What a model can read."""

    tokens: int
    """Ids are below this."""
    max_length: int | None
    """Tokens of a prompt with its response; None where the model names no bound."""
    banned_ids: tuple[int, ...]
    """Ids that are never sampled: they stand for pixels."""


class Fault(NamedTuple):
    """Why a row is bad."""

    reason: str
    """One word, as it is counted: `no_tokens`."""
    told: str
    """The same as an error tells it, with the value found."""


class Responses(NamedTuple):
    """What a look at every row found."""

    problem_ids: list[str]
    """In order, each once, the bad ones too."""
    bad: list[BadRow]
    """Problems with a bad row: without it the group would be another, so all of it is left out."""


def check_responses(path: Path, spec: TableSpec[Any], known: Callable[[str], bool], limits: Limits) -> Responses:
    """Look at every row of `rollouts` or `groups`; `known` tells whether there is a problem of an id.

    Bad rows: `unknown_problem`; `split_group`, rows of a problem in two places; `duplicate_sample`; `stray_repair`,
    which does not follow its error; `unknown_role`; `negative_sample`; `lengths_disagree`; `no_tokens`;
    `unknown_token`; `vision_token`; `response_too_long`; `not_finite`, a log-prob, a score or a reward;
    `logprob_above_zero`.

    Raises:
        DataError: as `iterate_rows`, or there are no rows.
    """
    bad: dict[str, BadRow] = {}
    order = _Order(known)
    for file in parquet_files(path, spec):
        first_row = 0
        for table in iterate_tables(file, spec):
            faults: dict[int, Fault] = {}
            for row, fault in _faults(table, limits):
                faults.setdefault(row, fault)
            for row, (problem_id, sample, role) in enumerate(_keys(table)):
                found = order.fault(problem_id, sample, role) or faults.get(row)
                if found is not None:
                    place = f"{file} row {first_row + row} ({problem_id}, sample {sample})"
                    bad.setdefault(problem_id, BadRow(problem_id, found.reason, f"{place}: {found.told}"))
            first_row += len(table)
    if not order.seen:
        raise DataError(f"{path}: no rows in it; {spec.name} is written by {spec.producer}")
    return Responses(list(order.seen), list(bad.values()))


def _keys(table: pa.Table) -> Iterator[tuple[str, int, str | None]]:
    """Problem, sample and role of each row; rollouts have no role."""
    roles = table["role"].to_pylist() if "role" in table.column_names else [None] * len(table)
    return zip(table["problem_id"].to_pylist(), table["sample"].to_pylist(), roles, strict=True)


class _Order:
    """Follows the rows of an artifact: a problem's stand together, each once, a repair behind its error."""

    def __init__(self, known: Callable[[str], bool]) -> None:
        self.seen: dict[str, None] = {}
        self._known = known
        self._last: tuple[str, int, str | None] | None = None
        self._of_problem: set[tuple[int, str | None]] = set()

    def fault(self, problem_id: str, sample: int, role: str | None) -> Fault | None:
        last, self._last = self._last, (problem_id, sample, role)
        if last is None or last[0] != problem_id:
            self._of_problem.clear()
            if problem_id in self.seen:
                return Fault("split_group", "rows of this problem stand further up too; sort the rows by problem_id")
            self.seen[problem_id] = None
            if not self._known(problem_id):
                return Fault(
                    "unknown_problem",
                    f"no problem {problem_id}; give the problems that the other inputs were made from",
                )
        if (sample, role) in self._of_problem:
            return Fault("duplicate_sample", "it stands twice; keep one of them")
        self._of_problem.add((sample, role))
        if role is not None and role not in ROLES:
            return Fault("unknown_role", f"role is {role!r}, not one of {', '.join(ROLES)}; run df build-masks again")
        if role == "repair" and last != (problem_id, sample, "error"):
            return Fault("stray_repair", "a repair that does not follow its error; run df build-masks again")
        return None


def _faults(table: pa.Table, limits: Limits) -> Iterator[tuple[int, Fault]]:
    """Rows whose values cannot be, whatever stands around them."""
    samples_R = table["sample"].to_numpy()
    for row in np.flatnonzero(samples_R < 0).tolist():
        yield row, Fault("negative_sample", f"sample is {samples_R[row]}; count a problem's rollouts from 0")
    ids_T, lengths_R = _flat(table["ids"])
    for row in np.flatnonzero(lengths_R == 0).tolist():
        yield row, Fault("no_tokens", "it has no token ids; drop the row")
    for name in (*_LOGPROBS, *_SCORES, "mask"):
        if name in table.column_names:
            yield from _faults_of_list(name, table[name], lengths_R)
    rows_T = np.repeat(np.arange(len(table)), lengths_R)
    for entry in np.flatnonzero((ids_T < 0) | (ids_T >= limits.tokens)).tolist():
        told = f"token id {ids_T[entry]} is outside the vocabulary of {limits.tokens}; give the model that made it"
        yield int(rows_T[entry]), Fault("unknown_token", told)
    for entry in np.flatnonzero(np.isin(ids_T, limits.banned_ids)).tolist():
        told = f"token id {ids_T[entry]} stands for pixels, which no response holds; drop the row"
        yield int(rows_T[entry]), Fault("vision_token", told)
    if limits.max_length is not None:
        for row in np.flatnonzero(lengths_R >= limits.max_length).tolist():
            told = f"{lengths_R[row]} token ids, and the model takes {limits.max_length} with the prompt; drop the row"
            yield row, Fault("response_too_long", told)
    rewards_R = pc.fill_null(table["reward"], 0.0).to_numpy()
    for row in np.flatnonzero(~np.isfinite(rewards_R)).tolist():
        yield row, Fault("not_finite", f"reward is {rewards_R[row]}; score it again, or make it null")


def _faults_of_list(name: str, column: pa.ChunkedArray, lengths_R: NDArray[Any]) -> Iterator[tuple[int, Fault]]:
    values_T, found_R = _flat(column)
    for row in np.flatnonzero((found_R != lengths_R) & ~pc.is_null(column).to_numpy()).tolist():
        told = f"{lengths_R[row]} token ids, {found_R[row]} {name}; write it again"
        yield row, Fault("lengths_disagree", told)
    if name in (*_LOGPROBS, *_SCORES):
        rows_T = np.repeat(np.arange(len(found_R)), found_R)
        for entry in np.flatnonzero(~np.isfinite(values_T)).tolist():
            yield int(rows_T[entry]), Fault("not_finite", f"{name} holds {values_T[entry]}; write it again")
        for entry in np.flatnonzero(values_T > ROUNDING).tolist() if name in _LOGPROBS else ():
            told = f"{name} holds {values_T[entry]}, a probability above 1; write it again"
            yield int(rows_T[entry]), Fault("logprob_above_zero", told)


def _flat(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[Any]]:
    """Entries (T) of a column of lists, and how many (R) each row has, 0 where it is null."""
    lengths_R = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return pc.list_flatten(column).to_numpy(), lengths_R
