"""Difference feedback once more, without a model: the pairs of an earlier groups -> groups with other masks (eq. 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.artifacts.columns import GROUPS, TableSpec
from stages.artifacts.manifests import recorded_maker
from stages.artifacts.plan import Input, Plan
from stages.artifacts.step import Step, Tally
from stages.artifacts.store import count_rows, iterate_tables, parquet_files
from stages.core.alignment import mark_differences, symbols
from stages.declared import declare_realigned_pairs
from stages.errors import DataError, RecipeError
from stages.recipe import Recipe
from stages.runtime.progress import track
from stages.sections import MASK_OPTIONS, SCORE_COLUMNS


@dataclass(frozen=True)
class RealignPairs:
    """`df build-masks --pairs`: every column of an earlier output but `mask` is copied.

    Rows outside pairs keep their mask: all false, or all true on an ungated error.
    """

    recipe: Recipe
    pairs: Path

    @cached_property
    def declared(self) -> Plan:
        return declare_realigned_pairs(self.recipe, self.pairs)

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        parquet_files(self.pairs, GROUPS)
        if self.recipe.masks.granularity == "step":
            raise RecipeError(
                "masks.granularity is step: steps are told from the tokens' texts, which pairs do not hold; "
                "run df build-masks on the rollouts, or set masks.granularity=token"
            )
        return replace(self.declared, recipe={**self.declared.recipe, **recorded_maker(self.pairs)})

    def run(self, step: Step) -> None:
        options = self.recipe.masks.model_dump(include=MASK_OPTIONS)
        with track("build-masks", count_rows(self.pairs, GROUPS), "rows") as advance:
            for index, shard in enumerate(parquet_files(self.pairs, GROUPS)):
                rows = count_rows(shard, GROUPS)
                if not step.has_shard(GROUPS, index):
                    spec = GROUPS.without(set(SCORE_COLUMNS.values()) - set(pq.read_schema(shard).names))
                    step.stream_shard(index, spec, _realigned(shard, spec, options, step.tally))
                advance(rows)
        step.finish()


def _realigned(shard: Path, spec: TableSpec[Any], options: dict[str, Any], tally: Tally) -> Iterator[pa.Table]:
    first_row = 0
    for table in _with_whole_pairs(iterate_tables(shard, spec), spec.schema()):
        yield _realign(table, str(shard), first_row, options, tally)
        first_row += len(table)
    tally.rows_in += first_row
    tally.rows_out += first_row


def _with_whole_pairs(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows, cut nowhere between an error and its repair."""
    rest = schema.empty_table()
    for table in tables:
        rest = pa.concat_tables([rest, table.select(schema.names).cast(schema)])
        whole = len(rest) - (rest["role"][-1].as_py() == "error")
        yield rest.slice(0, whole)
        rest = rest.slice(whole)
    yield rest


def _realign(table: pa.Table, place: str, first_row: int, options: dict[str, Any], tally: Tally) -> pa.Table:
    """The table with new masks, worked on as one flat array of T tokens over all its rows."""
    bounds = np.append(0, np.cumsum(_lengths(table, place, first_row))).tolist()
    ids_T, mask_T = (pc.list_flatten(table[name]).to_numpy() for name in ("ids", "mask"))
    tokens = symbols(ids_T)
    repairs = _repairs(table, place, first_row)
    tokens_in_pairs = tokens_marked = 0
    for repair in repairs:
        start, middle, end = bounds[repair - 1 : repair + 2]
        mask_T[start:end] = False
        mark_differences(tokens[start:middle], tokens[middle:end], mask_T[start:middle], mask_T[middle:end], **options)
        tokens_in_pairs += end - start
        tokens_marked += int(np.count_nonzero(mask_T[start:end]))
    tally.counts.update(pairs=len(repairs), tokens_in_pairs=tokens_in_pairs, tokens_marked=tokens_marked)
    column = table.schema.get_field_index("mask")
    return table.set_column(column, table.schema.field(column), pa.ListArray.from_arrays(bounds, mask_T))


def _lengths(table: pa.Table, place: str, first_row: int) -> NDArray[np.int32]:
    """How many tokens each row has; its mask must have as many values."""
    tokens, values = (pc.list_value_length(table[name]).to_numpy() for name in ("ids", "mask"))
    wrong = np.flatnonzero(tokens != values)
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"{place} row {first_row + row}: mask has {values[row]} values for {tokens[row]} ids; "
            f"write it again with {GROUPS.producer}"
        )
    return tokens


def _repairs(table: pa.Table, place: str, first_row: int) -> list[int]:
    """Which rows are repairs; each must follow the error that it repairs."""
    roles, problems, samples = (table[name].to_numpy() for name in ("role", "problem_id", "sample"))
    is_repair, follows = roles == "repair", np.zeros(len(roles), np.bool_)
    follows[1:] = (roles[:-1] == "error") & (problems[1:] == problems[:-1]) & (samples[1:] == samples[:-1])
    alone = np.flatnonzero(is_repair & ~follows)
    if len(alone):
        row = alone[0]
        raise DataError(
            f"{place} row {first_row + row}: a repair of {problems[row]}, sample {samples[row]}, does not follow its "
            f"error; write it again with {GROUPS.producer}"
        )
    return np.flatnonzero(is_repair).tolist()
