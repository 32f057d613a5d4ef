"""The policy's answers to problems, scored by the task reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import Problem
from stages.engines.protocol import Completion, Generator, Request, Sampling
from stages.model.prompts import Prompt, policy_prompt
from stages.scoring.rewards import Reward, score_all
from stages.sections import PromptSection


@dataclass(frozen=True)
class Answer:
    """One response with its text and task reward; `reward` None could not be scored."""

    completion: Completion
    text: str
    reward: float | None


class Answerer:
    """Samples answers of one model and scores them."""

    def __init__(self, engine: Generator, style: PromptSection, reward: Reward, ledger: CostLedger) -> None:
        self.engine = engine
        self.style = style
        self.reward = reward
        self.ledger = ledger

    def prompt(self, problem: Problem) -> Prompt:
        return policy_prompt(self.engine.codec.processor, self.style, problem.question, problem.images, problem.video)

    def answer(self, problems: Sequence[Problem], n: int, sampling: Sampling) -> list[list[Answer]]:
        """`n` answers to each problem; none where the prompt is too long for the model."""
        with self.ledger.phase("generate"):
            groups = self.engine.generate([Request(self.prompt(problem), n) for problem in problems], sampling)
        flat = [(problem, c) for problem, group in zip(problems, groups, strict=True) for c in group]
        texts = [self.engine.codec.decode(completion.ids) for _, completion in flat]
        with self.ledger.phase("reward"):
            rewards = score_all(self.reward, texts, [problem.as_row() for problem, _ in flat])
        answers = (
            Answer(completion, text, reward) for (_, completion), text, reward in zip(flat, texts, rewards, strict=True)
        )
        return [list(islice(answers, len(group))) for group in groups]
