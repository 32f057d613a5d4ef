"""The policy's answers to problems, scored by the task reward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, tee
from typing import Any

from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import Problem
from stages.engines.protocol import Batch, Completion, Generator, Request, Sampling
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
    """Problems that are written together: each gets `answers` answers, sampled alike."""

    index: int
    problems: Sequence[Problem]
    answers: int
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
        ((_, groups),) = self.answer_each([Shard(0, problems, n, sampling)])
        return groups

    def answer_each(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, list[list[Answer]]]]:
        """Each shard in order, with the answers to each of its problems.

        Where the reward waits for a server, a shard is scored while the next one is generated: `reward` in the ledger
        is then the time in which nothing else was done.
        """
        drawn_each = self._draw_each(shards)
        if not self.reward.waits:
            for shard, drawn in drawn_each:
                with self.ledger.phase("reward"):
                    rewards = score_all(self.reward, drawn.texts, drawn.rows)
                yield shard, drawn.answers(rewards)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="reward") as executor:
            scored: Iterator[tuple[Shard, list[list[Answer]]]] = iter(())
            for shard, drawn in drawn_each:
                scoring = executor.submit(score_own, self.reward, drawn.texts, drawn.rows)
                yield from scored
                scored = self._when_scored(shard, drawn, scoring)
            yield from scored

    def _draw_each(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, _Drawn]]:
        """The engine takes shards as it has room for them."""
        asked, ahead = tee(shards)
        drawn = self.ledger.each("generate", self.engine.stream(map(self._batch, ahead)))
        for shard, groups in zip(asked, drawn, strict=True):
            texts = [self.engine.codec.decode(completion.ids) for group in groups for completion in group]
            rows = [problem.as_row() for problem, group in zip(shard.problems, groups, strict=True) for _ in group]
            yield shard, _Drawn(groups, texts, rows)

    def _batch(self, shard: Shard) -> Batch:
        return Batch([Request(self.prompt(problem), shard.answers) for problem in shard.problems], shard.sampling)

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
