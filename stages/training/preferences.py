"""DPO on an error and its repair, as a loss of the one trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from stages.core.preferences import DPO_BETA, dpo_loss, gated_log_ratio
from stages.model.layout import Reading
from stages.model.logprobs import ResponseLogprobs
from stages.sections import ObjectiveSection
from stages.training.losses import open_reading, policy_tensors
from stages.training.trainer import Metric, Totals, TrainingRow


class PreferenceObjective:
    """Mean over the step's pairs of `-log sigmoid(margin)`; rows are an error, its repair, an error, its repair, ...

    The reference is the policy that made the groups: its log-probs, of the distribution that is sampled, are the
    rows' old ones.
    """

    has_kl = False

    def __init__(self, section: ObjectiveSection) -> None:
        self.beta = DPO_BETA if section.beta is None else section.beta

    def reading(self, row: TrainingRow) -> Reading:
        """The tokens whose gate is open, an error's in one pass with its repair's."""
        return replace(open_reading(row), with_next=row.role == "error")

    def __call__(
        self,
        rows: Sequence[TrainingRow],
        logprobs: ResponseLogprobs,
        _reference_BT: Tensor | None,
        totals: Totals,
    ) -> tuple[Tensor, dict[str, Metric]]:
        tensors = policy_tensors(rows, logprobs)
        log_ratio_B = gated_log_ratio(
            tensors.logprobs_BT,
            tensors.old_logprobs_BT,
            response_mask_BT=tensors.response_mask_BT,
            gate_BT=tensors.gate_BT,
        )
        sides = {"error": slice(0, None, 2), "repair": slice(1, None, 2)}
        result = dpo_loss(
            *(log_ratio_B[side] for side in sides.values()), beta=self.beta, num_pairs=totals.num_sequences // 2
        )
        pairs = len(result.margins_P)
        metrics = {
            "reward_margin": Metric(result.margins_P.mean(), pairs),
            "preference_accuracy": Metric((result.margins_P > 0).float().mean(), pairs),
        }
        for role, side in sides.items():
            tokens = sum(len(row.ids) for row in rows[side])
            metrics[f"log_ratio/{role}"] = Metric(log_ratio_B[side].mean(), pairs)
            metrics[f"gate_density/{role}"] = Metric(tensors.gate_BT[side].sum() / max(tokens, 1), tokens)
        return result.loss, metrics
