"""The policy's answers to problems, scored by the task reward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import Problem
from stages.engines.protocol import Completion, Generator, Request, Sampling
from stages.model.prompts import Prompt, policy_prompt
from stages.reward.rewards import Reward, score_all, score_own
from stages.runtime.processes import join
from stages.sections import PromptSection


@dataclass(frozen=True)
class Answer:
    """One response with its text and task reward; `reward` None could not be scored."""

    completion: Completion
    text: str
    reward: float | None


@dataclass(frozen=True)
class Shard:
    """Problems that are answered and written together, and their sampling."""

    index: int
    problems: Sequence[Problem]
    sampling: Sampling


class Answerer:
    """Samples answers of one model and scores them."""

    def __init__(self, engine: Generator, style: PromptSection, reward: Reward, ledger: CostLedger) -> None:
        self.engine = engine
        self.style = style
        self.reward = reward
        self.ledger = ledger

    def prompt(self, problem: Problem) -> Prompt:
        return policy_prompt(self.engine.codec.processor, self.style, problem)

    def answer(self, problems: Sequence[Problem], n: int, sampling: Sampling) -> list[list[Answer]]:
        """`n` answers to each problem; none where the prompt is too long for the model."""
        drawn = self._generate(problems, n, sampling)
        with self.ledger.phase("reward"):
            rewards = score_all(self.reward, drawn.texts, drawn.rows)
        return drawn.answers(rewards)

    def answer_each(self, shards: Iterable[Shard], n: int) -> Iterator[tuple[Shard, list[list[Answer]]]]:
        """Each shard in order, with `answer` of it.

        Where the reward waits for a server, a shard is scored while the next one is generated: `reward` in the ledger
        is then the time in which nothing else was done.
        """
        if not self.reward.waits:
            yield from ((shard, self.answer(shard.problems, n, shard.sampling)) for shard in shards)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="reward") as executor:
            scored: Iterator[tuple[Shard, list[list[Answer]]]] = iter(())
            for shard in shards:
                drawn = self._generate(shard.problems, n, shard.sampling)
                scoring = executor.submit(score_own, self.reward, drawn.texts, drawn.rows)
                yield from scored
                scored = self._when_scored(shard, drawn, scoring)
            yield from scored

    def _generate(self, problems: Sequence[Problem], n: int, sampling: Sampling) -> _Drawn:
        with self.ledger.phase("generate"):
            groups = self.engine.generate([Request(self.prompt(problem), n) for problem in problems], sampling)
        texts = [self.engine.codec.decode(completion.ids) for group in groups for completion in group]
        rows = [problem.as_row() for problem, group in zip(problems, groups, strict=True) for _ in group]
        return _Drawn(groups, texts, rows)

    def _when_scored(
        self, shard: Shard, drawn: _Drawn, scoring: Future[list[float | None]]
    ) -> Iterator[tuple[Shard, list[list[Answer]]]]:
        with self.ledger.phase("reward"):
            rewards = join(scoring.result())
        yield shard, drawn.answers(rewards)


@dataclass(frozen=True)
class _Drawn:
    """Completions of each problem; of each completion in their order its text and the problem's row."""

    groups: list[list[Completion]]
    texts: list[str]
    rows: list[dict[str, Any]]

    def answers(self, rewards: Sequence[float | None]) -> list[list[Answer]]:
        completions = [completion for group in self.groups for completion in group]
        answers = (Answer(*parts) for parts in zip(completions, self.texts, rewards, strict=True))
        return [list(islice(answers, len(group))) for group in self.groups]
