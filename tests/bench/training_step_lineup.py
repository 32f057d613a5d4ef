"""Every side of the benchmark by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from training_step_case import Case, independent
from training_step_one_row import PrefixGrouping, UnpaddedRow
from training_step_sides import FullLogits, Ours, Side
from training_step_trl import Trl


def ours_independent(case: Case, rows_at_once: int) -> Ours:
    """Gates off, on responses of the same lengths that share nothing but the prompt."""
    return Ours(independent(case), rows_at_once, gated=False)


SIDES: Mapping[str, Callable[[Case, int], Side]] = {
    "trl": Trl,
    "trl_compact": partial(Trl, compact_head=True),
    "trl_checkpointing": partial(Trl, compact_head=True, checkpointing=True),
    "full_logits": FullLogits,
    "unpadded_row": UnpaddedRow,
    "prefix_grouping": PrefixGrouping,
    "ours": partial(Ours, gated=False),
    "ours_independent": ours_independent,
    "ours_checkpointing": partial(Ours, gated=False, checkpointing=True),
    "ours_gated": partial(Ours, gated=True),
    "ours_gated_checkpointing": partial(Ours, gated=True, checkpointing=True),
}
ONE_ROW = {name for name in SIDES if name.startswith("ours")} | {"unpadded_row", "prefix_grouping"}
"""Those that put the rows of a micro-batch into one row, and so the whole group unless memory forbids it."""
