"""The served judge: whether a response's final answer is right where no rule can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stages.errors import RecipeError
from stages.reward.rewards import Reward
from stages.sections import RewardSection
from stages.served.case import DATA_RULES, Case, Pictures
from stages.served.endpoint import Reply, ServedModel

INSTRUCTIONS = f"""You judge whether a response to a problem is correct.

{DATA_RULES}

The object has the problem's `question`, its `reference_answer`, which is right, and the `response`. The response is \
correct if it states one final answer and that answer means the same as the reference answer, in whatever notation; \
whether its reasoning is sound does not count. It is incorrect if its final answer differs, or if it states none or \
several.

Answer with one JSON object: `reason`, one or two sentences that compare the two answers, then `verdict`."""


class JudgeReply(Reply):
    """A judge's verdict."""

    reason: str
    verdict: Literal["correct", "incorrect"]


class JudgeReward(Reward):
    """Reward 1 for a response that most verdicts call correct, 0 for incorrect, None where neither has a majority."""

    waits = True

    def __init__(self, section: RewardSection) -> None:
        """Raises RecipeError where no judge is named, or its key is not there; no request is sent."""
        if section.judge is None:
            raise RecipeError(
                "reward.name is judge, but reward.judge is null; give it {base_url, model, api_key_env}, or set "
                "reward.name to math"
            )
        self._model = ServedModel(section.judge, "reward.judge", INSTRUCTIONS, JudgeReply)

    def score_many(self, responses: Sequence[str], problems: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Raises EndpointError; see ``ServedModel.ask``."""
        pictures: dict[str, Pictures] = {}
        cases = []
        for response, problem in zip(responses, problems, strict=True):
            shown = pictures.setdefault(problem["problem_id"], Pictures(problem["images"], problem["video"]))
            texts = {"question": problem["question"], "reference_answer": problem["answer"], "response": response}
            cases.append(Case(shown, texts))
        return [self._reward(replies) for replies in self._model.ask(cases)]

    def _reward(self, replies: Sequence[JudgeReply]) -> float | None:
        correct = sum(reply.verdict == "correct" for reply in replies)
        if correct >= self._model.majority:
            return 1.0
        return 0.0 if len(replies) - correct >= self._model.majority else None
