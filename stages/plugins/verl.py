"""verl: a token-level gate on advantages (eq. 10), in the estimator `difference_grpo` of its registry, or in the loss.

verl loads this module by itself where both are installed (entry point `verl.plugins`). Tested with verl 0.9.1.
Axes: B responses of a batch, T tokens of the longest, padded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, register_adv_est
from verl.workers.utils.losses import ppo_loss


class Advantages(NamedTuple):
    """What verl expects of an estimator: each (B, T), and 0 outside the responses."""

    advantages_BT: Tensor
    returns_BT: Tensor


def difference_grpo(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any,
    reward_baselines: Tensor | None = None,
    config: Any = None,
) -> Advantages:
    """verl's GRPO advantages, normalised over each group first, times the gate.

    `reward_baselines` is the gate (B, T): `data.batch` has no other name that verl's `compute_advantage` hands to an
    estimator, and nothing else there reads it. It holds `error_T` and `repair_T` of `stages.core.difference_masks`, or
    soft weights, and 1 at every token of a response that is trained on whole. `index` (B,) names each response's group.

    Raises:
        ValueError: there is no gate, or it is not (B, T).
    """
    if reward_baselines is None or reward_baselines.shape != response_mask.shape:
        found = "missing" if reward_baselines is None else f"of shape {tuple(reward_baselines.shape)}"
        raise ValueError(
            f"the gate is {found}; put one of {tuple(response_mask.shape)} into data.batch['reward_baselines'] "
            "before compute_advantage"
        )
    by_std = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    ungated_BT, _ = compute_grpo_outcome_advantage(
        token_level_rewards, response_mask, index, norm_adv_by_std_in_grpo=by_std
    )
    return Advantages(ungated_BT * reward_baselines, ungated_BT)


register_adv_est("difference_grpo")(difference_grpo)


def gated_ppo_loss(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """verl's `ppo_loss`, the loss of its workers, of any estimator's advantages times `data["gate"]`.

    The gate (B, T) is padded or nested, as `data["advantages"]` may be; it holds what `difference_grpo` is handed. KL
    and entropy terms are ungated. `set_loss_fn` of a worker group takes it with `config` bound to the actor's.

    Raises:
        KeyError: there is no gate.
    """
    padded = data.select("advantages", "gate").to_padded_tensor()
    gated_BT = padded["advantages"] * padded["gate"]
    return ppo_loss(config, model_output, data.copy().update({"advantages": gated_BT}), dp_group)
