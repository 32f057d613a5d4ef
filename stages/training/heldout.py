"""Which part of the repair set is never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stages.artifacts.problems import Problem, ProblemSet
from stages.engines.protocol import Sampling
from stages.model.loading import VisionLanguageModel
from stages.recipe import Recipe
from stages.scoring.repairs import Attempt, Draft, Repairer
from stages.seeds import derive_seed

ATTEMPTS = 8
"""Repairs of each held-out error, from which Acc@1 and Acc@2 are estimated."""


class Split(NamedTuple):
    train: list[str]
    heldout: list[str]


def split_repair_set(repair_set: ProblemSet, heldout_share: float) -> Split:
    """Ids that are trained on, and the last of the file, which are held out.

    The order is the annotator's: end the file with problems whose images occur nowhere before.
    """
    count = round(len(repair_set) * heldout_share)
    ids = repair_set.ids
    return Split(ids[: len(ids) - count], ids[len(ids) - count :])


def annotated_draft(vlm: VisionLanguageModel, problem: Problem) -> Draft:
    """A repair set's erroneous response as a draft."""
    text = problem.extra["error"]
    return Draft(problem, 0, with_end(vlm, text), text)


def with_end(vlm: VisionLanguageModel, text: str) -> list[int]:
    """Token ids of an annotated response, end token included."""
    return [*vlm.tokenizer(text, add_special_tokens=False)["input_ids"], vlm.end_ids[0]]


def repair_heldout(repairer: Repairer, problems: Sequence[Problem], recipe: Recipe) -> list[list[Attempt]]:
    """Repairs of held-out errors, sampled as `df build-masks` samples."""
    drafts = [annotated_draft(repairer.engine.vlm, problem) for problem in problems]
    sampling = Sampling(recipe.rollout.max_new_tokens, recipe.rollout.temperature, derive_seed(recipe.seed, 2))
    return repairer.repair(drafts, ATTEMPTS, sampling)


def sample_rows(groups: Sequence[Sequence[Attempt]]) -> list[dict[str, object]]:
    """Rows of `samples`."""
    return [
        {
            "problem_id": attempt.draft.problem.problem_id,
            "attempt": attempt.index,
            "answer": attempt.draft.problem.answer,
            "error": attempt.draft.text,
            "text": attempt.text,
            "reward": attempt.reward,
            "cost": attempt.cost,
        }
        for group in groups
        for attempt in group
    ]
