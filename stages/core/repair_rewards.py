"""Gates and reward of repair RL (eq. 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from stages.core.selection import is_correct, reaches_share


def c1_gate(image_free_rewards_n: Sequence[float | None], threshold: float, share: float = 1.0) -> bool | None:
    """Eq. 3: False when at least `share` of an error's image-free repairs are correct: the image was not needed.

    One gate serves all repairs of the error, and the share is all of them (our choices). None when unscored tries
    leave it open, or there are none.
    """
    if not image_free_rewards_n:
        return None
    n = len(image_free_rewards_n)
    correct = sum(is_correct(reward, threshold) for reward in image_free_rewards_n)
    if reaches_share(correct, n, share):
        return False
    unscored = sum(reward is None for reward in image_free_rewards_n)
    return None if reaches_share(correct + unscored, n, share) else True


def repair_reward(
    reward: float | None,
    cost: float,
    gate_c1: bool | None,
    gate_audit: bool | None,
    *,
    edit_penalty: float,
    gating: Literal["all", "task"],
) -> float | None:
    """Eq. 4: `g_audit · g_C1 · (R − λC)`; with gating `task`, `g_audit · g_C1 · R − λC` (our option).

    None when the task reward, or a gate that decides, could not be had: such a repair is never trained on.
    """
    if reward is None:
        return None
    if False in (gate_c1, gate_audit):
        gate = 0
    elif None in (gate_c1, gate_audit):
        return None
    else:
        gate = 1
    if gating == "all":
        return gate * (reward - edit_penalty * cost)
    return gate * reward - edit_penalty * cost
