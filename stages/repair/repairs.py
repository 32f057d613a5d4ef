"""Repairs of wrong answers: sampled from the repair model and scored, or correct rollouts of the same group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, tee

from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import Problem
from stages.core.alignment import edit_cost
from stages.engines.protocol import Batch, Completion, Generator, Request, Sampling
from stages.model.prompts import Prompt, repair_prompt
from stages.repair.image_removal import Blank, without_image
from stages.reward.rewards import Reward, score_all
from stages.sections import PromptSection


@dataclass(frozen=True)
class Sibling:
    """A correct rollout of an error's own group."""

    sample: int
    completion: Completion
    text: str
    reward: float | None


@dataclass(frozen=True)
class Draft:
    """An erroneous response y: which rollout of which problem, its token ids with the end token, its text."""

    problem: Problem
    sample: int
    ids: list[int]
    text: str
    right_response: str | None = None
    """The reference of its repair prompt; the annotated answer if None."""
    siblings: Sequence[Sibling] = ()
    right_texts: Sequence[str] = ()
    """Right responses to the problem, the policy's own or annotated ones, that an auditor may try itself on."""


@dataclass(frozen=True)
class DraftBatch:
    """Drafts whose repairs are wanted together, and how these are sampled."""

    drafts: Sequence[Draft]
    sampling: Sampling


@dataclass(frozen=True)
class Attempt:
    """One repair ŷ of a draft, with R and C (eq. 2). `reward` None could not be scored."""

    draft: Draft
    index: int
    completion: Completion
    text: str
    reward: float | None
    cost: float

    @property
    def ids(self) -> list[int]:
        return self.completion.ids

    @property
    def is_cut(self) -> bool:
        """Whether it ends at the length limit, without an end token."""
        return self.completion.finish_reason == "length"


class Repairer:
    """Asks a repair model for repairs (eq. 5)."""

    def __init__(self, engine: Generator, style: PromptSection, reward: Reward, ledger: CostLedger) -> None:
        self.engine = engine
        self.style = style
        self.reward = reward
        self.ledger = ledger

    def prompt(self, draft: Draft, *, with_reference: bool = True) -> Prompt:
        """`(x, y, y*)`, or `(x, y)` with the reference withheld."""
        codec, problem, response = self.engine.codec, draft.problem, draft.right_response
        reference = problem.answer if response is None else response
        return repair_prompt(
            codec.processor,
            self.style,
            problem,
            codec.without_end(draft.ids),
            reference if with_reference else None,
            is_response=response is not None,
        )

    def repair(
        self, drafts: Sequence[Draft], n: int, sampling: Sampling, *, with_reference: bool = True
    ) -> list[list[Attempt]]:
        """`n` independent repairs of each draft; none where the prompt is too long for the model."""
        (attempts,) = self.repair_each([DraftBatch(drafts, sampling)], n, with_reference=with_reference)
        return attempts

    def repair_each(
        self, batches: Iterable[DraftBatch], n: int, *, with_reference: bool = True
    ) -> Iterator[list[list[Attempt]]]:
        """`repair` of each batch, in order; the engine takes batches as it has room for them."""
        asked, ahead = tee(batches)
        requests = (self._requests(batch, n, with_reference) for batch in ahead)
        drawn = self.ledger.each("generate", self.engine.stream(requests))
        for batch, groups in zip(asked, drawn, strict=True):
            yield self._attempts(batch.drafts, groups)

    def _requests(self, batch: DraftBatch, n: int, with_reference: bool) -> Batch:
        """A repair copies most of its draft, so the engine is told to expect it."""
        requests = [
            Request(self.prompt(draft, with_reference=with_reference), n, draft_ids=draft.ids) for draft in batch.drafts
        ]
        return Batch(requests, batch.sampling)

    def _attempts(self, drafts: Sequence[Draft], groups: Sequence[Sequence[Completion]]) -> list[list[Attempt]]:
        flat = [(draft, k, c) for draft, group in zip(drafts, groups, strict=True) for k, c in enumerate(group)]
        texts = [self.engine.codec.decode(completion.ids) for _, _, completion in flat]
        with self.ledger.phase("reward"):
            rewards = score_all(self.reward, texts, [draft.problem.as_row() for draft, _, _ in flat])
            attempts = iter(
                [
                    Attempt(draft, k, completion, text, reward, edit_cost(draft.ids, completion.ids))
                    for (draft, k, completion), text, reward in zip(flat, texts, rewards, strict=True)
                ]
            )
        return [list(islice(attempts, len(group))) for group in groups]

    def repair_without_image(
        self, drafts: Sequence[Draft], n: int, sampling: Sampling, blank: Blank, *, with_reference: bool
    ) -> list[list[Attempt]]:
        """C1's counterfactuals: repairs of the same drafts on blank images."""
        blanked = [replace(draft, problem=without_image(draft.problem, blank)) for draft in drafts]
        return self.repair(blanked, n, sampling, with_reference=with_reference)


def right_responses(problem: Problem, siblings: Sequence[str]) -> list[str]:
    """The policy's own right responses to a problem, and the annotated ones: `preferred`, a repair set's `repair`."""
    annotated = (problem.preferred, problem.extra.get("repair"))
    return [*siblings, *(text for text in annotated if text is not None)]


def sibling_repairs(drafts: Sequence[Draft]) -> list[list[Attempt]]:
    """Each draft's correct siblings as its repairs (our choice), `index` being their `sample`.

    They differ from the error where the policy's own trajectories do: step credit without a repair model.
    """
    return [
        [
            Attempt(draft, s.sample, s.completion, s.text, s.reward, edit_cost(draft.ids, s.completion.ids))
            for s in draft.siblings
        ]
        for draft in drafts
    ]
