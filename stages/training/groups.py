"""Optimization groups: which trajectories of a problem are trained on, with what advantage and gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.core.advantages import group_advantages, overlong_penalty
from stages.core.masks import gate_weights
from stages.recipe import ObjectiveSection, RolloutSection, TrainSection


@dataclass(frozen=True)
class Trajectory:
    """A row of `groups` with its advantage and its gate."""

    row: Mapping[str, Any]
    advantage: float
    gate_T: list[float]


def optimization_group(
    rows: Sequence[Mapping[str, Any]], train: TrainSection, rollout: RolloutSection
) -> list[Trajectory]:
    """One problem's trajectories as the recipe's gate wants them, or none.

    Difference feedback trains on the errors and their selected repairs (eq. 16), the ungated baseline on the
    whole rollout group. DAPO's dynamic sampling drops a group that is all right or all wrong.
    """
    if train.gate == "none":
        rows = [row for row in rows if row["role"] != "repair"]
    else:
        rows = [row for row in rows if row["in_pair"]]
    outcomes = {row["role"] == "error" for row in rows}
    if not rows or (train.objective.algorithm == "dapo" and len(outcomes) == 1):
        return []
    advantages = _advantages(rows, train.objective, rollout.max_new_tokens)
    return [
        Trajectory(row, advantage, gate_weights(row["mask"], train.gate, half_life=train.half_life).tolist())
        for row, advantage in zip(rows, advantages, strict=True)
    ]


def _advantages(rows: Sequence[Mapping[str, Any]], objective: ObjectiveSection, max_new_tokens: int) -> list[float]:
    rewards_G = torch.tensor([row["reward"] for row in rows])
    if objective.overlong_buffer:
        lengths_G = torch.tensor([len(row["ids"]) for row in rows])
        rewards_G = rewards_G + overlong_penalty(lengths_G, max_length=max_new_tokens, buffer=objective.overlong_buffer)
    return advantage_values(rewards_G, objective)


def advantage_values(rewards_G: torch.Tensor | Sequence[float], objective: ObjectiveSection) -> list[float]:
    """Group advantages with the objective's own scale: Dr.GRPO does not divide by the deviation."""
    return group_advantages(rewards_G, scale="none" if objective.algorithm == "dr_grpo" else "std").tolist()
