"""Difference feedback as functions of arrays, for any trainer: what is listed in `__all__` stays.

A name is imported when it is asked for: half of them need torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.core.advantages import group_advantages, overlong_penalty
    from stages.core.alignment import DifferenceMasks, difference_masks, edit_cost, edit_script
    from stages.core.masks import evened_gate, gate_weights, leaky_gate, soft_weights, step_ids, step_mask
    from stages.core.objectives import PolicyLoss, kl_estimate, policy_loss
    from stages.core.preferences import dpo_loss
    from stages.core.process_rewards import outcome_loss, process_advantages
    from stages.core.repair_rewards import c1_gate, repair_reward
    from stages.core.sampler_mismatch import mismatch, truncated_weights
    from stages.core.selection import Selection, select_repair
    from stages.core.token_credit import answer_gap_advantages, entropy_gates, perception_gate
    from stages.core.values import gae, value_loss, whiten

__all__ = [
    "DifferenceMasks",
    "PolicyLoss",
    "Selection",
    "answer_gap_advantages",
    "c1_gate",
    "difference_masks",
    "dpo_loss",
    "edit_cost",
    "edit_script",
    "entropy_gates",
    "evened_gate",
    "gae",
    "gate_weights",
    "group_advantages",
    "kl_estimate",
    "leaky_gate",
    "mismatch",
    "outcome_loss",
    "overlong_penalty",
    "perception_gate",
    "policy_loss",
    "process_advantages",
    "repair_reward",
    "select_repair",
    "soft_weights",
    "step_ids",
    "step_mask",
    "truncated_weights",
    "value_loss",
    "whiten",
]
_NAMES = {
    "advantages": ("group_advantages", "overlong_penalty"),
    "alignment": ("DifferenceMasks", "difference_masks", "edit_cost", "edit_script"),
    "masks": ("evened_gate", "gate_weights", "leaky_gate", "soft_weights", "step_ids", "step_mask"),
    "sampler_mismatch": ("mismatch", "truncated_weights"),
    "objectives": ("PolicyLoss", "kl_estimate", "policy_loss"),
    "preferences": ("dpo_loss",),
    "process_rewards": ("outcome_loss", "process_advantages"),
    "repair_rewards": ("c1_gate", "repair_reward"),
    "selection": ("Selection", "select_repair"),
    "token_credit": ("answer_gap_advantages", "entropy_gates", "perception_gate"),
    "values": ("gae", "value_loss", "whiten"),
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
