"""Why responses are wrong that may not be: no final answer is found in them, or they were cut at the length limit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from stages.recipe import Recipe
from stages.reward.extraction import final_answer

logger = logging.getLogger(__name__)

MOST = 0.5
"""Share of the responses past which a cause is the likely one."""


class Response(NamedTuple):
    """What tells a lost answer."""

    text: str
    finish_reason: str


def count_lost(counts: Counter[str], recipe: Recipe, responses: Iterable[Response]) -> None:
    """Add `responses`, those `cut`, and, where rules look for it, those `without_final_answer`."""
    rules = recipe.reward.name == "math"
    for response in responses:
        counts["responses"] += 1
        counts["responses_cut"] += response.finish_reason == "length"
        counts["responses_without_final_answer"] += rules and final_answer(response.text) is None


def warn_of_none_right(place: object, counts: Mapping[str, int], recipe: Recipe) -> None:
    """Tell where no response is right; `place` is what they answer.

    `counts` has what `count_lost` counted, and how many of those responses are `correct`.
    """
    if recipe.reward.name != "none" and counts.get("responses") and not counts.get("correct"):
        logger.warning("%s: %s", place, why_none_is_right(counts, recipe))


def why_none_is_right(counts: Mapping[str, int], recipe: Recipe) -> str:
    """What `count_lost` found, and the field to look at first, for a run without a single right response."""
    responses = counts.get("responses", 0)
    cut, without = counts.get("responses_cut", 0), counts.get("responses_without_final_answer", 0)
    if cut > MOST * responses:
        remedy = f"raise rollout.max_new_tokens ({recipe.rollout.max_new_tokens})"
    elif without > MOST * responses:
        remedy = "let prompt.instruction say how a response ends, as in 'End with: The answer is N.'"
    else:
        remedy = f"look at some, and at reward.threshold ({recipe.reward.threshold:g})"
    return (
        f"no response is right: of {responses}, {cut} were cut at the length limit and {without} have no final answer "
        f"that the rules find; {remedy}"
    )
