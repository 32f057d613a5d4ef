"""Which of an error's repairs supplies its mask (eqs. 6 and 7). Axis: K candidate repairs of one error."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Selection(NamedTuple):
    """`chosen` indexes K, None when no candidate is feasible.

    One reason per candidate: chosen, unscored, wrong, cut, flagged, unaudited or costlier.
    """

    chosen: int | None
    reasons: list[str]


def is_correct(reward: float | None, threshold: float) -> bool:
    """R >= tau (eq. 12); what could not be scored is not correct.

    Both are taken as float32, in which rewards are stored: a reward of 0.9 reaches a threshold of 0.9 in a file too.
    """
    return reward is not None and bool(np.float32(reward) >= np.float32(threshold))


def reaches_share(hits: int, n: int, share: float) -> bool:
    """Whether `hits` of `n` are at least that share; none of none is not.

    Quotients are compared: 11 of 20 reach 0.55, while 0.55 * 20 is more than 11.
    """
    return n > 0 and hits / n >= share


def is_worthwhile(tried: int, feasible: int, *, share: float, after: int) -> bool:
    """Whether errors like these are repaired further: until `after` were, then while that share had a feasible repair.

    Of the errors tried, not of candidates: repairs pay by the pairs that they make (our choice).
    """
    return tried < after or reaches_share(feasible, tried, share)


def share_of(n: int, share: float) -> int:
    """So many of `n`, rounded half to even, of the share as it is written: 0.07 of 150 is 10.5, so 10."""
    return round(Fraction(repr(share)) * n)


def select_repair(
    rewards_K: Sequence[float | None],
    costs_K: Sequence[float],
    flagged_K: Sequence[bool | None],
    *,
    cut_K: Sequence[bool] | None = None,
    threshold: float = 1.0,
) -> Selection:
    """The feasible candidate (eq. 6) of least edit cost (eq. 7); ties go to the lowest k.

    Feasible: reward of at least `threshold`, and not flagged by the auditor, nor `cut` at the length limit (the latter
    two our choice): a cut repair has no end token, and the error's would be pushed down beside it. A null reward or
    verdict is infeasible too, under a reason of its own. Raises ValueError on unequal lengths.
    """
    cut_K = [False] * len(rewards_K) if cut_K is None else cut_K
    obstacles_K = [_obstacle(*candidate, threshold) for candidate in zip(rewards_K, flagged_K, cut_K, strict=True)]
    feasible = [(cost, k) for k, (cost, o) in enumerate(zip(costs_K, obstacles_K, strict=True)) if o is None]
    chosen = min(feasible)[1] if feasible else None
    reasons_K = [o or ("chosen" if k == chosen else "costlier") for k, o in enumerate(obstacles_K)]
    return Selection(chosen, reasons_K)


def _obstacle(reward: float | None, flagged: bool | None, cut: bool, threshold: float) -> str | None:
    if reward is None:
        return "unscored"
    if not is_correct(reward, threshold):
        return "wrong"
    if cut:
        return "cut"
    if flagged is None:
        return "unaudited"
    return "flagged" if flagged else None
