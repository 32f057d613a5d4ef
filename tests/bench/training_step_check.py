"""The gate before timing: every side makes the same step, to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor
from training_step_case import Case
from training_step_sides import FullLogits, Ours, Plain, Side, Trl

TOLERANCE = 1e-5
NO_CLIP = 1e9
PADDED_ROWS = 2


class Gradient(NamedTuple):
    """Of one step, unclipped, by parameter."""

    loss: float
    by_name: Mapping[str, Tensor]


def check_sides(case: Case) -> dict[str, float]:
    """Largest difference of each pair of sides: of a parameter's gradient, relative to its norm, or of the loss.

    The loss's is absolute: it is what is left of terms of about 1 that cancel. TRL divides a micro-batch's loss by
    the number of micro-batches, so its losses add up to the group's mean as the others' do.

    Raises:
        AssertionError: one is above `TOLERANCE`.
    """
    case = replace(case, max_grad_norm=NO_CLIP)
    unbanned = replace(case, ban_ids=False)
    group = len(case.rows)
    ours = _gradient(Ours(case, group, gated=False))
    ours_gated = _gradient(Ours(case, group, gated=True))
    ours_unbanned = _gradient(Ours(unbanned, group, gated=False))
    differences = {
        "ours - plain rows": _difference(ours, _gradient(Plain(case, case.ungated_rows))),
        "ours - full logits": _difference(ours, _gradient(FullLogits(case, PADDED_ROWS))),
        "ours, gates on - plain rows": _difference(ours_gated, _gradient(Plain(case, case.rows))),
        "ours - TRL, no banned ids": _difference(ours_unbanned, _gradient(Trl(unbanned, PADDED_ROWS))),
    }
    for name, difference in differences.items():
        assert difference <= TOLERANCE, f"{name}: {difference:.2e}, more than {TOLERANCE:g}"
    return differences


def _gradient(side: Side) -> Gradient:
    loss = side.step()
    return Gradient(loss, {name: p.grad for name, p in side.model.named_parameters() if p.grad is not None})


def _difference(one: Gradient, other: Gradient) -> float:
    assert one.by_name.keys() == other.by_name.keys(), "gradients of other parameters"
    norms = [
        ((gradient - other.by_name[name]).norm() / other.by_name[name].norm()).item()
        for name, gradient in one.by_name.items()
    ]
    return max(*norms, abs(one.loss - other.loss))
