"""The recipe's reward, by its name: ``math``, a served ``judge``, a user's own ``module:function``, or ``none``."""

from __future__ import annotations

from stages.errors import RecipeError
from stages.reward.rewards import NONE, Reward, load_reward
from stages.sections import RewardSection


def open_reward(section: RewardSection) -> Reward:
    """The recipe's reward.

    Raises:
        RecipeError: it cannot be had.
    """
    if section.name == "judge":
        from stages.reward.judge import JudgeReward  # the OpenAI client takes a second to import

        return JudgeReward(section)
    options = {"workers": section.workers, "timeout_s": section.timeout_s} if section.name == "math" else {}
    try:
        return load_reward(section.name, **options)
    except ValueError as error:
        raise RecipeError(f"reward.name: {error}") from error


def check_reward(section: RewardSection, *, needed: bool = True) -> None:
    """Refuse a reward that cannot be had, or none where one is `needed`, before any compute.

    Raises:
        RecipeError: it cannot be had.
    """
    if needed and section.name == NONE:
        raise RecipeError("reward.name is none, which df rollout alone can do without; take math, judge or your own")
    with open_reward(section):
        pass
