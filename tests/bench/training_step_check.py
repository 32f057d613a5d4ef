"""The gate before timing: every side makes the same step, to rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from training_step_case import NO_CLIP, Case, independent
from training_step_one_row import PrefixGrouping, UnpaddedRow
from training_step_sides import FullLogits, Ours, Plain, Side
from training_step_trl import Trl

from stages.training.trainer import TrainingRow

TOLERANCE = 1e-5
PADDED_ROWS = 2
ROWS = 4
"""Of the group: two errors and their repairs, of unequal lengths."""


class Computed(NamedTuple):
    """What one side makes of some rows."""

    old_logprobs_N: Tensor
    """Where gates are open."""
    loss: float
    gradient: Mapping[str, Tensor]
    """Unclipped, by parameter."""


def check_sides(case: Case) -> dict[str, float]:
    """Largest difference of each pair of sides over the first `ROWS` rows, relative to the norm of what is compared:
    old log-probs, and each parameter's gradient; of the loss, absolute.

    The loss is what is left of terms of about 1 that cancel. TRL divides a micro-batch's loss by the number of
    micro-batches, so its losses add up to the group's mean as the others' do.

    Raises:
        AssertionError: one is above `TOLERANCE`.
    """
    case = replace(case, rows=case.rows[:ROWS], max_grad_norm=NO_CLIP)
    unbanned, apart = replace(case, ban_ids=False), independent(case)
    plain = _computed(Plain(case, case.ungated_rows), case.ungated_rows)
    plain_gated = _computed(Plain(case, case.rows), case.rows)
    plain_apart = _computed(Plain(apart, apart.rows), apart.rows)
    ours_unbanned = _computed(Ours(unbanned, ROWS, gated=False), case.ungated_rows)
    differences = {
        f"{name} - {reference}": _difference(_computed(side, rows), computed)
        for name, side, rows, reference, computed in (
            ("full logits", FullLogits(case, PADDED_ROWS), case.ungated_rows, "plain rows", plain),
            ("unpadded row", UnpaddedRow(case, ROWS), case.ungated_rows, "plain rows", plain),
            ("prefix grouping", PrefixGrouping(case, ROWS), case.ungated_rows, "plain rows", plain),
            ("ours", Ours(case, ROWS, gated=False), case.ungated_rows, "plain rows", plain),
            ("ours, gates on", Ours(case, ROWS, gated=True), case.rows, "plain rows", plain_gated),
            ("ours, independent", Ours(apart, ROWS, gated=False), apart.rows, "plain rows", plain_apart),
            ("TRL, no banned ids", Trl(unbanned, PADDED_ROWS), case.ungated_rows, "ours", ours_unbanned),
        )
    }
    for name, difference in differences.items():
        assert difference <= TOLERANCE, f"{name}: {difference:.2e}, more than {TOLERANCE:g}"
    return differences


def _computed(side: Side, rows: Sequence[TrainingRow]) -> Computed:
    open_rows = [torch.tensor(row.gate_T or [1.0] * len(row.ids)) > 0 for row in rows]
    old = [logprobs_T[open_T] for logprobs_T, open_T in zip(side.old_logprobs(), open_rows, strict=True)]
    loss = side.step()
    gradient = {name: p.grad for name, p in side.model.named_parameters() if p.grad is not None}
    return Computed(torch.cat(old), loss, gradient)


def _difference(one: Computed, other: Computed) -> float:
    assert one.gradient.keys() == other.gradient.keys(), "gradients of other parameters"
    gradients = [_relative(gradient, other.gradient[name]) for name, gradient in one.gradient.items()]
    return max(*gradients, _relative(one.old_logprobs_N, other.old_logprobs_N), abs(one.loss - other.loss))


def _relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()
