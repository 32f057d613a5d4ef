"""Which of an error's repairs supplies its mask (eqs. 6 and 7). Axis: K candidate repairs of one error."""

from collections.abc import Sequence
from typing import NamedTuple


class Selection(NamedTuple):
    """`chosen` indexes K, None when no candidate is feasible.

    One reason per candidate: chosen, unscored, wrong, flagged, unaudited or costlier.
    """

    chosen: int | None
    reasons: list[str]


def is_correct(reward: float | None, threshold: float) -> bool:
    """R >= tau (eq. 12); what could not be scored is not correct."""
    return reward is not None and reward >= threshold


def select_repair(
    rewards_K: Sequence[float | None],
    costs_K: Sequence[float],
    flagged_K: Sequence[bool | None],
    *,
    threshold: float = 1.0,
) -> Selection:
    """The feasible candidate (eq. 6) of least edit cost (eq. 7); ties go to the lowest k.

    Feasible: reward of at least `threshold`, and not flagged by the auditor (the latter our choice). A null
    reward or verdict is infeasible too, under a reason of its own. Raises ValueError on unequal lengths.
    """
    obstacles_K = [_obstacle(r, f, threshold) for r, f in zip(rewards_K, flagged_K, strict=True)]
    feasible = [(cost, k) for k, (cost, o) in enumerate(zip(costs_K, obstacles_K, strict=True)) if o is None]
    chosen = min(feasible)[1] if feasible else None
    reasons_K = [o or ("chosen" if k == chosen else "costlier") for k, o in enumerate(obstacles_K)]
    return Selection(chosen, reasons_K)


def _obstacle(reward: float | None, flagged: bool | None, threshold: float) -> str | None:
    if reward is None:
        return "unscored"
    if reward < threshold:
        return "wrong"
    if flagged is None:
        return "unaudited"
    return "flagged" if flagged else None
