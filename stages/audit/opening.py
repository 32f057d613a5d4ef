"""The recipe's auditor: none, the embedded one, or a served model."""

from __future__ import annotations

from stages.audit.auditor import Auditor, NoAuditor, RulesAuditor
from stages.recipe import Recipe
from stages.repair.answering import Answerer
from stages.sections import AuditSection


def open_auditor(recipe: Recipe, policy: Answerer) -> Auditor:
    """The recipe's auditor; the embedded one asks the policy to continue repairs.

    Raises:
        RecipeError: it is a served one that cannot be had.
    """
    if recipe.audit.auditor == "none":
        return NoAuditor()
    if recipe.audit.auditor == "served":
        from stages.audit.served_auditor import ServedAuditor  # the OpenAI client takes a second to import

        return ServedAuditor(recipe, policy)
    return RulesAuditor(
        recipe.audit, policy, threshold=recipe.reward.threshold, max_new_tokens=recipe.rollout.max_new_tokens
    )


def check_auditor(section: AuditSection) -> None:
    """Refuse a served auditor that cannot be had, before any compute.

    Raises:
        RecipeError: it cannot be had.
    """
    if section.auditor == "served":
        from stages.audit.served_auditor import open_model

        open_model(section)
