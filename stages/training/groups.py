"""Optimization groups: which trajectories of a problem are trained on, with what advantage and gate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NotRequired

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stages.artifacts.rows import GroupRow
from stages.core.advantages import group_advantages, overlong_penalty
from stages.core.masks import evened_gate, gate_weights, leaky_gate
from stages.core.objectives import has_critic
from stages.core.token_credit import answer_gap_advantages, entropy_gates, perception_gate
from stages.core.values import CriticSettings, gae, whiten
from stages.runtime.batching import batched
from stages.sections import ROLLOUT_GATES, ObjectiveSection, RolloutSection, ScoreColumn, TrainSection
from stages.training.trainer import Totals, TrainingRow, totals_of


class TrainedRow(GroupRow):
    """A row of `groups`, with those of the critic's `values` that are its own."""

    values: NotRequired[list[float]]
    stored_logprobs: NotRequired[list[float]]
    """Those of `groups`, where `old_logprobs` were read again: what is believed does not change with their rounding."""


@dataclass(frozen=True)
class Trajectory:
    """A row of `groups` with its advantage (see `advantages_of`) and its gate."""

    row: TrainedRow
    advantage: float
    gate_T: list[float]
    advantage_T: list[float] | None = None
    """In place of `advantage`, where each token has its own."""


def optimization_group(rows: Sequence[TrainedRow], train: TrainSection, rollout: RolloutSection) -> list[Trajectory]:
    """One problem's trajectories as the recipe's gate and group want them, or none.

    Difference feedback trains on the errors and their selected repairs (eq. 16), or, where the group is `all` (our
    choice), on every rollout beside the repairs, with gate 1 where there is no pair. The ungated baseline trains on
    the whole rollout group, as gates without repairs do, and PPO on that one with either gate: its correct rollouts
    have gate 1, its errors their masks (eq. 24-28), which mark nothing on an error without a repair. DPO takes pairs
    whatever the gate. A gate that takes a whole step to tell is 1 here: see `with_batch_gates`.
    """
    rows = supported(rows, train.support)
    if train.objective.algorithm == "dpo":
        return _preference_pairs(rows, train)
    rows = _rows_of_gate(rows, train)
    advantages = advantages_of(
        [row["reward"] for row in rows],
        outcomes=[row["role"] == "error" for row in rows],
        lengths=[len(row["ids"]) for row in rows],
        objective=train.objective,
        max_new_tokens=rollout.max_new_tokens,
    )
    if advantages is None:
        return []
    return [_trajectory(row, advantage, train) for row, advantage in zip(rows, advantages, strict=True)]


def left_out(rows: Sequence[TrainedRow], train: TrainSection) -> str | None:
    """Why `optimization_group` gives nothing for one problem, told from its rows' `role` and `in_pair`, and with a
    `support` from `mask` and `old_logprobs`; None where it gives something.
    """
    rows = supported(rows, train.support)
    pairs_only = train.objective.algorithm == "dpo"
    rows_G = [row for pair in _pairs(rows) for row in pair] if pairs_only else _rows_of_gate(rows, train)
    if not rows_G:
        return "all_correct" if all(row["role"] == "correct" for row in rows) else "no_repaired_error"
    is_uniform = len({row["role"] == "error" for row in rows_G}) == 1
    return "dynamic_sampling" if train.objective.algorithm == "dapo" and is_uniform else None


def supported(rows: Sequence[TrainedRow], support: float) -> list[TrainedRow]:
    """One problem's rows without the repairs of which the policy gives a marked token less than this probability; their
    errors are then errors without a repair.

    A repair model that is shown the answer also invents what leads there. The policy, which has the image before it,
    hardly believes that (our choice).
    """
    if not support:
        return list(rows)
    unsupported = {
        row["sample"]
        for row in rows
        if row["role"] == "repair"
        and _least_probability(row.get("stored_logprobs", row["old_logprobs"]), row["mask"]) < support
    }
    return [
        row if row["sample"] not in unsupported else {**row, "in_pair": False, "mask": [False] * len(row["mask"])}
        for row in rows
        if row["role"] != "repair" or row["sample"] not in unsupported
    ]


def _least_probability(logprobs_T: Sequence[float], mask_T: Sequence[bool]) -> float:
    """Of the marked tokens; 1 where none is."""
    return float(np.exp(np.min(np.array(logprobs_T)[np.array(mask_T, bool)], initial=0.0)))


def _rows_of_gate(rows: Sequence[TrainedRow], train: TrainSection) -> list[TrainedRow]:
    if train.gate in ROLLOUT_GATES or has_critic(train.objective.algorithm):
        return [row for row in rows if row["role"] != "repair"]
    return [row for row in rows if row["in_pair"] or train.group == "all"]


def _preference_pairs(rows: Sequence[TrainedRow], train: TrainSection) -> list[Trajectory]:
    """Each error and its repair; the advantage is the side, -1 or 1. Ungated errors have no repair and are left out."""
    return [_trajectory(row, side, train) for pair in _pairs(rows) for row, side in zip(pair, (-1.0, 1.0), strict=True)]


def _pairs(rows: Sequence[TrainedRow]) -> list[tuple[TrainedRow, TrainedRow]]:
    """Each error and, next to it, its repair, as `groups` has them."""
    return [pair for pair in pairwise(rows) if [row["role"] for row in pair] == ["error", "repair"]]


def _trajectory(row: TrainedRow, advantage: float, train: TrainSection) -> Trajectory:
    gate_T = _weighed(_gate(row, train), train)
    if train.advantage != "answer_gap":
        return Trajectory(row, advantage, gate_T)
    advantages_T = answer_gap_advantages(advantage, _scores(row, "answer_gaps"), weight=train.answer_gap_weight)
    return Trajectory(row, advantage, gate_T, advantages_T.tolist())


def _scores(row: TrainedRow, column: ScoreColumn) -> list[float]:
    """Of a rollout, which has them: `df train-policy` looks before it starts."""
    scores = row[column]
    assert scores is not None
    return scores


def _gate(row: TrainedRow, train: TrainSection) -> NDArray[np.float32]:
    if train.gate == "perception":
        return perception_gate(_scores(row, "image_kls"))
    is_free = row["role"] == "correct" or (train.group == "all" and not row["in_pair"])
    gate = train.gate
    return gate_weights(row["mask"], "none" if is_free or gate == "entropy" else gate, half_life=train.half_life)


def _weighed(gate_T: NDArray[np.float32], train: TrainSection) -> list[float]:
    return evened_gate(leaky_gate(gate_T, train.leak), train.evenness).tolist()


def with_batch_gates(groups: Sequence[Sequence[Trajectory]], train: TrainSection) -> list[list[Trajectory]]:
    """All groups of one optimizer step, whatever process works on them, with the gate that is told from them together.

    That is `entropy`'s; under another gate the trajectories stay as they are.
    """
    if train.gate != "entropy":
        return [list(group) for group in groups]
    gates = iter(entropy_gates([_scores(t.row, "entropies") for group in groups for t in group]))
    return [[replace(t, gate_T=_weighed(next(gates), train)) for t in group] for group in groups]


def advantages_of(
    rewards: Sequence[float],
    *,
    outcomes: Sequence[Hashable],
    lengths: Sequence[int],
    objective: ObjectiveSection,
    max_new_tokens: int,
) -> list[float] | None:
    """Advantages of one group under the recipe's objective, or None where the group is not trained on.

    DAPO's dynamic sampling drops a group whose `outcomes` are all the same: right or wrong for the policy, the
    reward itself for the repair model. The overlong penalty enters here and nowhere else. Dr.GRPO does not divide by
    the deviation. PPO's are the rewards as they are: see `with_token_advantages`.
    """
    if not rewards or (objective.algorithm == "dapo" and len(set(outcomes)) == 1):
        return None
    rewards_G = torch.tensor(rewards)
    if objective.overlong_buffer:
        rewards_G = rewards_G + overlong_penalty(
            torch.tensor(lengths), max_length=max_new_tokens, buffer=objective.overlong_buffer
        )
    if has_critic(objective.algorithm):
        return rewards_G.tolist()
    return group_advantages(rewards_G, scale="none" if objective.algorithm == "dr_grpo" else "std").tolist()


def without_contrast(advantages: Sequence[float]) -> bool:
    """Whether one group's rewards, their overlong penalty included, are all equal; told from its advantages."""
    return len(set(advantages)) == 1


def with_token_advantages(rows: Sequence[TrainingRow], objective: ObjectiveSection) -> list[TrainingRow]:
    """The rows of one optimizer step with PPO's advantages and returns, or as they are where there is no critic.

    Each response's `advantage` is its reward, which comes at its last token; advantages are whitened over all response
    tokens of the rows, which are the global batch, whatever their gates.
    """
    if not has_critic(objective.algorithm):
        return list(rows)
    settings = CriticSettings(**objective.critic())
    values_BT = _padded([row.values_T for row in rows])
    mask_BT = _padded([[True] * len(row.ids) for row in rows])
    rewards_BT = _padded([[0.0] * (len(row.ids) - 1) + [row.advantage] * bool(row.ids) for row in rows])
    estimate = gae(rewards_BT, values_BT, mask_BT, gamma=settings.gamma, lam=settings.gae_lambda)
    advantages_BT = whiten(estimate.advantages_BT, mask_BT)
    return [
        replace(row, advantage_T=advantage_T[: len(row.ids)], returns_T=returns_T[: len(row.ids)])
        for row, advantage_T, returns_T in zip(rows, advantages_BT.tolist(), estimate.returns_BT.tolist(), strict=True)
    ]


def rows_to_work_on(rows: Sequence[TrainingRow], objective: ObjectiveSection) -> tuple[list[TrainingRow], Totals]:
    """The rows that have a gradient, and the denominators over all of them.

    A row whose advantage or whole gate is zero adds nothing to the policy term; with a KL term, or a critic that learns
    from it, every row is worked on, and of a preference pair both or neither.
    """
    every = objective.kl_coef > 0 or has_critic(objective.algorithm)
    together = 2 if objective.algorithm == "dpo" else 1
    units = [unit for unit in batched(rows, together) if every or any(map(_has_gradient, unit))]
    return [row for unit in units for row in unit], totals_of(rows)


def _padded(values: Sequence[Sequence[float]]) -> Tensor:
    return pad_sequence([torch.tensor(value_T) for value_T in values], batch_first=True)


def _has_gradient(row: TrainingRow) -> bool:
    advantages = [row.advantage] if row.advantage_T is None else row.advantage_T
    return any(advantages) and (row.gate_T is None or any(row.gate_T))
