"""Which part of the repair set is never trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from stages.artifacts.columns import SAMPLES, SUMMARY
from stages.artifacts.ledger import EVALUATION
from stages.artifacts.problems import PROBLEMS_AT_ONCE, Problem, ProblemSet
from stages.artifacts.rows import SampleRow
from stages.artifacts.step import Step
from stages.audit.auditor import AuditCase, Auditor
from stages.core.selection import share_of
from stages.engines.loading import recipe_sampling
from stages.measures.accuracy import Measure
from stages.measures.repairs import summarize_samples
from stages.model.codec import Codec
from stages.recipe import Recipe
from stages.repair.references import References
from stages.repair.repairs import Draft, Repairer, right_responses
from stages.runtime.batching import batched
from stages.seeds import Purpose

ATTEMPTS = 8
"""Repairs of each held-out error, from which Acc@1 and Acc@2 are estimated."""


class Split(NamedTuple):
    """Ids of a repair set."""

    train: list[str]
    heldout: list[str]
    shown: Sequence[str] = ()
    """Neither: they show what a held-out one shows."""


def split_repair_set(repair_set: ProblemSet, heldout_share: float) -> Split:
    """Ids that are trained on, and the last of the file, which are held out.

    The order is the annotator's: end the file with problems whose images occur nowhere before.
    """
    count = share_of(len(repair_set), heldout_share)
    ids = list(repair_set.ids)
    return Split(ids[: len(ids) - count], ids[len(ids) - count :])


def apart(repair_set: ProblemSet, split: Split) -> Split:
    """The split without those to train on that show what a held-out one shows."""
    held_out = HeldOut(repair_set.many(split.heldout))
    shown = {
        name for names in batched(split.train, PROBLEMS_AT_ONCE) for name in held_out.among(repair_set.many(names))
    }
    return Split([name for name in split.train if name not in shown], split.heldout, sorted(shown))


class HeldOut:
    """Problems whose errors are held out: nothing is trained on them, nor on what shows the same.

    A problem is one of them by its id, by an image or frame with the same pixels as one of theirs, and, where it has
    nothing to look at, by its question.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        problems = list(problems)
        self._ids = {problem.problem_id for problem in problems}
        self._shown = {name for problem in problems for name in _shown(problem)}

    def among(self, problems: Iterable[Problem]) -> set[str]:
        """Ids of those that are held out; no picture is decoded where none is."""
        return {problem.problem_id for problem in problems if self._ids and self._holds(problem)}

    def _holds(self, problem: Problem) -> bool:
        return problem.problem_id in self._ids or any(name in self._shown for name in _shown(problem))


def _shown(problem: Problem) -> Iterator[str]:
    """What tells a problem from others, whatever its id."""
    pictures = list(problem.images) + ([] if problem.video is None else problem.video.decoded())
    for picture in pictures:
        yield hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
    if not pictures:
        yield " ".join(problem.question.split())


def annotated_draft(codec: Codec, problem: Problem, right_response: str | None = None) -> Draft:
    """A repair set's erroneous response as a draft."""
    text = problem.extra["error"]
    ids, right_texts = with_end(codec, text), right_responses(problem, [])
    return Draft(problem, 0, ids, text, right_response, right_texts=right_texts)


def annotated_reference(references: References, problem: Problem, sample: int) -> str | None:
    """A reference drawn for a repair set's error; its only sibling is the preferred response."""
    return references.draw(problem, sample, [] if problem.preferred is None else [problem.preferred])


def with_end(codec: Codec, text: str) -> list[int]:
    """Token ids of an annotated response, end token included."""
    return [*codec.tokenizer(text, add_special_tokens=False)["input_ids"], codec.end_ids[0]]


def repair_heldout(
    repairer: Repairer, auditor: Auditor, repair_set: ProblemSet, recipe: Recipe, step: Step
) -> list[Measure]:
    """Repair the held-out errors as `df build-masks` would and audit the repairs, booked as evaluation.

    Writes `samples` and returns what they measure.
    """
    with step.ledger.phase(EVALUATION):
        rows = _heldout_repairs(repairer, auditor, repair_set, recipe, step)
    step.write_table(SAMPLES, rows)
    return summarize_samples("held-out repairs", rows, recipe.reward.threshold)


def _heldout_repairs(
    repairer: Repairer, auditor: Auditor, repair_set: ProblemSet, recipe: Recipe, step: Step
) -> list[SampleRow]:
    heldout = repair_set.many(split_repair_set(repair_set, recipe.sft.heldout_share).heldout)
    references = References(recipe.prompt.references, recipe.seed, step.tally.counts)
    drafts = [
        annotated_draft(repairer.engine.codec, problem, annotated_reference(references, problem, 0))
        for problem in heldout
    ]
    groups = repairer.repair(drafts, ATTEMPTS, recipe_sampling(recipe, Purpose.HELDOUT_REPAIRS))
    step.tally.counts["held_out_prompt_too_long"] += sum(not group for group in groups)
    attempts = [attempt for group in groups for attempt in group]
    verdicts = auditor.audit([AuditCase(attempt) for attempt in attempts])
    step.tally.counts["held_out_repairs_flagged"] += sum(verdict.flagged is True for verdict in verdicts)
    step.tally.counts["held_out_repairs_abstained"] += sum(verdict.abstained for verdict in verdicts)
    return [
        {
            "problem_id": attempt.draft.problem.problem_id,
            "attempt": attempt.index,
            "answer": attempt.draft.problem.answer,
            "error": attempt.draft.text,
            "text": attempt.text,
            "reward": attempt.reward,
            "cost": attempt.cost,
            "flagged": verdict.flagged,
            "category": verdict.category,
        }
        for attempt, verdict in zip(attempts, verdicts, strict=True)
    ]


def write_summary(step: Step, measures: Sequence[Measure]) -> None:
    """Write `summary`."""
    step.write_table(SUMMARY, [measure._asdict() for measure in measures])
