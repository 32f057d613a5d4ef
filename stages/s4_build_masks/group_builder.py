"""Shards of rollouts -> repairs, masks and optimization groups (eq. 5-8, 12-19)."""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, tee
from typing import TypeAlias

import numpy as np

from stages.artifacts.overlay import PairView, Sample, overlay_page
from stages.artifacts.problems import Problem, ProblemSet
from stages.artifacts.rows import GroupMember, GroupRow, RepairRow, RolloutRow
from stages.artifacts.step import Step, Tally
from stages.audit.auditor import AuditCase, Auditor, Verdict, count_verdicts, is_audited
from stages.core.selection import Selection, is_correct, is_worthwhile, select_repair
from stages.engines.protocol import Completion, Sampling, ScoreRequest, TokenScores
from stages.errors import DataError, ModelError
from stages.model.loading import DTYPES
from stages.model.prompts import Prompt, answer_prompt, can_be_reference
from stages.recipe import Recipe
from stages.repair.answering import Answerer
from stages.repair.hard_masks import hard_masks
from stages.repair.image_removal import without_image
from stages.repair.marked_pairs import marked_runs, pair_of_each_problem
from stages.repair.references import References
from stages.repair.repairs import Attempt, Draft, DraftBatch, Repairer, Sibling, right_responses, sibling_repairs
from stages.reward.lost_answers import Response, count_lost
from stages.seeds import Purpose, derive_seed
from stages.training.losses import FIRST_STEP_TOLERANCE, root_mean_square

logger = logging.getLogger(__name__)

Trajectory: TypeAlias = tuple[str, tuple[int, ...]]
"""A problem's id and the token ids of a response to it."""
PAGE_PROBLEMS = 20


@dataclass(frozen=True)
class RolloutShard:
    """Rollouts whose groups are written together, and how their repairs are sampled."""

    index: int
    rollouts: Sequence[RolloutRow]
    sampling: Sampling


@dataclass(frozen=True)
class Built:
    """Rows of one shard, problem by problem in the order of the rollouts."""

    index: int
    repairs: list[RepairRow]
    groups: list[GroupRow]


@dataclass(frozen=True)
class _Wanted:
    """What is to be repaired of a shard, and what was counted to find it: the shards before it may not be written."""

    shard: RolloutShard
    groups: list[list[RolloutRow]]
    drafts: list[Draft]
    tally: Tally


class GroupBuilder:
    """Turns rollouts into repairs and optimization groups. Without a `repairer` correct rollouts are the repairs."""

    def __init__(
        self,
        recipe: Recipe,
        problems: ProblemSet,
        repairer: Repairer | None,
        policy: Answerer,
        auditor: Auditor,
        step: Step,
    ) -> None:
        self.recipe = recipe
        self.problems = problems
        self.repairer = repairer
        self.policy = policy
        self.auditor = auditor
        self.step = step
        self._told_of_sampler = False

    def build(self, rollouts: Sequence[RolloutRow], sampling: Sampling) -> Built:
        """`build_each` of one shard."""
        (built,) = self.build_each([RolloutShard(0, rollouts, sampling)])
        return built

    def build_each(self, shards: Iterable[RolloutShard]) -> Iterator[Built]:
        """Repairs and groups of each shard, in order.

        The repair model takes errors of later shards while an earlier one ends, unless that one decides which are worth
        it.
        """
        runs: Iterable[Iterable[RolloutShard]] = ([shard] for shard in shards) if self._weighs_kinds else [shards]
        for run in runs:
            wanted, ahead = tee(map(self._wanted, run))
            for of_shard, attempts in zip(wanted, self._first_attempts(ahead), strict=True):
                yield self._built(of_shard, attempts)

    def _wanted(self, shard: RolloutShard) -> _Wanted:
        tally = Tally(rows_in=len(shard.rollouts))
        groups = [list(rows) for _, rows in groupby(shard.rollouts, key=lambda row: row["problem_id"])]
        drafts = [draft for rows in groups for draft in self._to_repair(rows, tally)]
        tally.counts["repair_triggered"] += len(drafts)
        return _Wanted(shard, groups, drafts, tally)

    def _built(self, wanted: _Wanted, attempts: list[list[Attempt]]) -> Built:
        tally, drafts, groups = self.step.tally, wanted.drafts, wanted.groups
        tally.add(wanted.tally)
        verdicts = self._audit(attempts)
        self._add_candidates(drafts, wanted.shard.sampling, attempts, verdicts)
        chosen: dict[tuple[str, int], Attempt] = {}
        repair_rows: list[RepairRow] = []
        for draft, group, group_verdicts in zip(drafts, attempts, verdicts, strict=True):
            rows, best = self._select(group, group_verdicts)
            repair_rows += rows
            self._count_kind(draft.problem.kind, is_feasible=best is not None)
            if best is not None:
                chosen[best.draft.problem.problem_id, best.draft.sample] = best
        repaired = {(draft.problem.problem_id, draft.sample) for draft in drafts}
        group_rows = self._scored([row for rows in groups for row in self._group(rows, chosen, repaired)])
        self._check_sampler(group_rows)
        tally.rows_out += len(group_rows)
        return Built(wanted.shard.index, repair_rows, group_rows)

    def page(self, built: Built) -> str:
        """A pair of each of the first problems that have one, to be looked at."""
        costs = {(r["problem_id"], r["sample"]): r["cost"] for r in built.repairs if r["selection"] == "chosen"}
        return overlay_page(
            [
                self._sample(error, repair, costs[error["problem_id"], error["sample"]])
                for error, repair in pair_of_each_problem(built.groups)[:PAGE_PROBLEMS]
            ]
        )

    def _sample(self, error: GroupRow, repair: GroupRow, cost: float) -> Sample:
        problem = self.problems[error["problem_id"]]
        codec = self.policy.engine.codec
        texts = [marked_runs(codec, row["ids"], row["mask"]) for row in (error, repair)]
        frames = problem.video.decoded() if problem.video else []
        facts = {"kind": problem.kind or "none", "edit cost": f"{cost:.3f}"}
        facts |= {f"reward of the {row['role']}": f"{row['reward']:g}" for row in (error, repair)}
        return Sample(
            f"{problem.problem_id}, sample {error['sample']}",
            PairView(problem.question, problem.answer, problem.images, frames, *texts),
            facts,
        )

    def _is_correct(self, row: RolloutRow) -> bool:
        return is_correct(row["reward"], self.recipe.reward.threshold)

    def _to_repair(self, rows: Sequence[RolloutRow], tally: Tally) -> list[Draft]:
        """The group's errors (eq. 12), unless the group is skipped, which is counted."""
        scored = [row for row in rows if row["reward"] is not None]
        correct = [row for row in scored if self._is_correct(row)]
        errors = [row for row in scored if not self._is_correct(row)]
        tally.dropped["unscored"] += len(rows) - len(scored)
        tally.counts["problems"] += 1
        count_lost(tally.counts, self.recipe, (Response(row["text"], row["finish_reason"]) for row in rows))
        if not scored:
            tally.counts["problems_unscored"] += 1
            return []
        if not errors:
            tally.counts["problems_all_correct"] += 1
            return []
        if not correct:
            tally.counts["problems_none_correct"] += 1
            if self.recipe.masks.on_no_correct == "skip":
                return []
        problem = self.problems[rows[0]["problem_id"]]
        if not self._is_worthwhile(problem.kind):
            tally.counts[_of_kind("errors_not_worthwhile", problem.kind)] += len(errors)
            return []
        return self._drafts(problem, self._at_most(problem, errors, tally.counts), correct, tally.counts)

    @property
    def _weighs_kinds(self) -> bool:
        return self.repairer is not None and self.recipe.masks.repair_when == "worthwhile"

    def _is_worthwhile(self, kind: str | None) -> bool:
        """Told from the counts of the shards before, which a run that goes on has too."""
        if not self._weighs_kinds:
            return True
        counts, section = self.step.tally.counts, self.recipe.masks
        tried, feasible = (counts[_of_kind(name, kind)] for name in ("errors_tried", "errors_feasible"))
        return is_worthwhile(tried, feasible, share=section.worthwhile_share, after=section.worthwhile_after)

    def _count_kind(self, kind: str | None, *, is_feasible: bool) -> None:
        if self._weighs_kinds:
            self.step.tally.counts[_of_kind("errors_tried", kind)] += 1
            self.step.tally.counts[_of_kind("errors_feasible", kind)] += is_feasible

    def _drafts(
        self,
        problem: Problem,
        errors: Sequence[RolloutRow],
        correct: Sequence[RolloutRow],
        counts: Counter[str],
    ) -> list[Draft]:
        if self.repairer is None:
            siblings = [
                Sibling(
                    row["sample"],
                    Completion(row["ids"], row["sampler_logprobs"], row["finish_reason"]),
                    row["text"],
                    row["reward"],
                )
                for row in correct
            ]
            return [Draft(problem, row["sample"], row["ids"], row["text"], siblings=siblings) for row in errors]
        processor = self.policy.engine.codec.processor
        whole = [row for row in correct if row["finish_reason"] == "stop"]
        texts = [row["text"] for row in whole if can_be_reference(processor, row["text"])]
        right_texts = right_responses(problem, [row["text"] for row in whole])
        references = References([self.recipe.masks.reference], self.recipe.seed, counts)
        return [
            Draft(
                problem,
                row["sample"],
                row["ids"],
                row["text"],
                references.draw(problem, row["sample"], texts),
                right_texts=right_texts,
            )
            for row in errors
        ]

    def _at_most(self, problem: Problem, errors: Sequence[RolloutRow], counts: Counter[str]) -> list[RolloutRow]:
        """The errors that are repaired, in their order; the others leave the group, counted."""
        most = self.recipe.masks.errors_per_problem
        if most is None or len(errors) <= most:
            return list(errors)
        counts["errors_over_limit"] += len(errors) - most
        seed = derive_seed(self.recipe.seed, Purpose.REPAIRED_ERRORS, zlib.crc32(problem.problem_id.encode()))
        chosen = np.random.default_rng(seed).choice(len(errors), most, replace=False)
        return [errors[i] for i in sorted(chosen)]

    @property
    def _at_once(self) -> int:
        """Candidates of every error (eq. 5); further ones are sampled where none of these is feasible."""
        section = self.recipe.masks
        return section.candidates if section.candidates_when == "always" else 1

    def _first_attempts(self, wanted: Iterable[_Wanted]) -> Iterator[list[list[Attempt]]]:
        if self.repairer is None:
            return (sibling_repairs(of_shard.drafts) for of_shard in wanted)
        batches = (DraftBatch(of_shard.drafts, of_shard.shard.sampling) for of_shard in wanted)
        return self.repairer.repair_each(batches, self._at_once)

    def _add_candidates(
        self,
        drafts: Sequence[Draft],
        sampling: Sampling,
        attempts: Sequence[list[Attempt]],
        verdicts: Sequence[list[Verdict]],
    ) -> None:
        """Sample further candidates of each error that has none feasible, one after the other."""
        if self.repairer is None:
            return
        for k in range(self._at_once, self.recipe.masks.candidates):
            # One that had none at first has a prompt that is too long.
            open_errors = [
                i for i, group in enumerate(attempts) if group and not self._has_feasible(group, verdicts[i])
            ]
            further = self.repairer.repair(
                [drafts[i] for i in open_errors],
                1,
                replace(sampling, seed=derive_seed(sampling.seed, Purpose.CANDIDATES, k)),
            )
            further = [[replace(attempt, index=k) for attempt in group] for group in further]
            for i, group, group_verdicts in zip(open_errors, further, self._audit(further), strict=True):
                attempts[i].extend(group)
                verdicts[i].extend(group_verdicts)

    def _has_feasible(self, group: Sequence[Attempt], verdicts: Sequence[Verdict]) -> bool:
        return self._selection(group, verdicts).chosen is not None

    def _selection(self, group: Sequence[Attempt], verdicts: Sequence[Verdict]) -> Selection:
        return select_repair(
            [attempt.reward for attempt in group],
            [attempt.cost for attempt in group],
            [verdict.against for verdict in verdicts],
            cut_K=[attempt.is_cut for attempt in group],
            threshold=self.recipe.reward.threshold,
        )

    def _audit(self, attempts: Sequence[Sequence[Attempt]]) -> list[list[Verdict]]:
        verdicts = iter(self.auditor.audit([AuditCase(attempt) for group in attempts for attempt in group]))
        return [[next(verdicts) for _ in group] for group in attempts]

    def _select(self, group: Sequence[Attempt], verdicts: Sequence[Verdict]) -> tuple[list[RepairRow], Attempt | None]:
        """Rows of `repairs` for one error, and its selected repair (eq. 6, 7)."""
        selection = self._selection(group, verdicts)
        tally = self.step.tally
        tally.counts["errors_repaired"] += selection.chosen is not None
        tally.counts["errors_with_prompt_too_long"] += not group and self.repairer is not None
        tally.counts["candidates"] += len(group)
        tally.counts["candidates_cut"] += sum(attempt.is_cut for attempt in group)
        tally.counts["candidates_correct"] += sum(is_correct(a.reward, self.recipe.reward.threshold) for a in group)
        audited = [is_audited(a.reward, v, self.recipe.reward.threshold) for a, v in zip(group, verdicts, strict=True)]
        tally.counts["candidates_audited"] += sum(audited)
        count_verdicts(tally.counts, "candidates", verdicts)
        tally.counts["candidates_unscored"] += sum(attempt.reward is None for attempt in group)
        rows: list[RepairRow] = [
            {
                "problem_id": attempt.draft.problem.problem_id,
                "sample": attempt.draft.sample,
                "candidate": attempt.index,
                "ids": attempt.ids,
                "text": attempt.text,
                "reward": attempt.reward,
                "cost": attempt.cost,
                "flagged": verdict.flagged,
                "category": verdict.category,
                "evidence": verdict.evidence,
                "selection": reason,
            }
            for attempt, verdict, reason in zip(group, verdicts, selection.reasons, strict=True)
        ]
        return rows, None if selection.chosen is None else group[selection.chosen]

    def _group(
        self, rows: Sequence[RolloutRow], chosen: dict[tuple[str, int], Attempt], repaired: set[tuple[str, int]]
    ) -> list[GroupMember]:
        """Rows of `groups` for one problem (eq. 16, 19)."""
        group: list[GroupMember] = []
        for row in rows:
            key = (row["problem_id"], row["sample"])
            if row["reward"] is None:
                continue
            if self._is_correct(row):
                group.append(self._row(row, "correct", mask=[False] * len(row["ids"]), in_pair=False))
            elif key in chosen:
                group += self._pair(row, chosen[key])
            else:
                ungated = key in repaired and self.recipe.masks.no_feasible == "ungated"
                self.step.tally.counts["errors_without_repair"] += key in repaired
                group.append(self._row(row, "error", mask=[ungated] * len(row["ids"]), in_pair=ungated))
        return group

    def _pair(self, row: RolloutRow, repair: Attempt) -> list[GroupMember]:
        error_T, repair_T = hard_masks(self.recipe.masks, self.policy.engine.codec, row["ids"], repair.ids)
        tally = self.step.tally
        tally.counts["tokens_in_pairs"] += len(error_T) + len(repair_T)
        tally.counts["tokens_marked"] += int(error_T.sum() + repair_T.sum())
        repaired: RolloutRow = {
            **row,
            "ids": repair.ids,
            "reward": repair.reward,
            "finish_reason": repair.completion.finish_reason,
            # A repair model's are of another prompt.
            "sampler_logprobs": repair.completion.logprobs if self.repairer is None else [],
        }
        return [
            self._row(row, "error", mask=error_T.tolist(), in_pair=True),
            self._row(repaired, "repair", mask=repair_T.tolist(), in_pair=True),
        ]

    def _row(self, row: RolloutRow, role: str, *, mask: list[bool], in_pair: bool) -> GroupMember:
        assert row["reward"] is not None
        return {
            "problem_id": row["problem_id"],
            "sample": row["sample"],
            "role": role,
            "in_pair": in_pair,
            "ids": row["ids"],
            "reward": row["reward"],
            "mask": mask,
            "finish_reason": row["finish_reason"],
            "sampler_logprobs": row["sampler_logprobs"] or None,
        }

    def _scored(self, rows: Sequence[GroupMember]) -> list[GroupRow]:
        """With the policy's own log-probs of every trajectory: the sampler of a repair was another model (eq. 18).

        Rollouts get what the recipe's gate or advantage is made of beside them.
        """
        trajectories = [(row["problem_id"], tuple(row["ids"])) for row in rows]
        # A correct rollout may repair several errors of its group.
        rollouts = dict.fromkeys(t for row, t in zip(rows, trajectories, strict=True) if row["role"] != "repair")
        scores = self._scores(list(dict.fromkeys(trajectories)), rollouts)
        column = self.recipe.train.scores
        asked = self._asked(scores, rollouts)
        scored: list[GroupRow] = []
        for member, trajectory in zip(rows, trajectories, strict=True):
            row: GroupRow = {**member, "old_logprobs": scores[trajectory].logprobs}
            if column is not None and row["role"] != "repair":
                row[column] = asked[trajectory]
            self._check_finite(row)
            scored.append(row)
        return scored

    def _scores(
        self, trajectories: Sequence[Trajectory], rollouts: Collection[Trajectory]
    ) -> dict[Trajectory, TokenScores]:
        problems = self._problems_of(trajectories)
        prompts = {name: self.policy.prompt(problem) for name, problem in problems.items()}
        blank: dict[str, Prompt] = {}
        if self.recipe.train.gate == "perception":
            by = self.recipe.repair_rl.blank
            blank = {name: self.policy.prompt(without_image(p, by)) for name, p in problems.items() if p.is_visual}
        return self._score(
            [
                ScoreRequest(prompts[name], ids, blank.get(name) if (name, ids) in rollouts else None)
                for name, ids in trajectories
            ],
            trajectories,
        )

    def _problems_of(self, trajectories: Iterable[Trajectory]) -> dict[str, Problem]:
        return {name: self.problems[name] for name in dict.fromkeys(name for name, _ in trajectories)}

    def _asked(
        self, scores: Mapping[Trajectory, TokenScores], rollouts: Collection[Trajectory]
    ) -> dict[Trajectory, list[float]]:
        """What the recipe's gate or advantage is made of; empty where it asks for nothing."""
        match self.recipe.train.scores:
            case "entropies":
                return {rollout: scores[rollout].entropies for rollout in rollouts}
            case "image_kls":
                return {rollout: scores[rollout].divergences for rollout in rollouts}
            case "answer_gaps":
                return self._answer_gaps(scores, rollouts)
        return {}

    def _answer_gaps(
        self, scores: Mapping[Trajectory, TokenScores], rollouts: Collection[Trajectory]
    ) -> dict[Trajectory, list[float]]:
        """In the numerics of both passes alike: a trainer's log-probs would be off by its own rounding."""
        problems = self._problems_of(rollouts)
        processor, style = self.policy.engine.codec.processor, self.policy.style
        prompts = {name: answer_prompt(processor, style, problem) for name, problem in problems.items()}
        taught = self._score([ScoreRequest(prompts[name], ids) for name, ids in rollouts], list(rollouts))
        return {
            rollout: [t - s for t, s in zip(teacher.logprobs, scores[rollout].logprobs, strict=True)]
            for rollout, teacher in taught.items()
        }

    def _score(
        self, requests: Sequence[ScoreRequest], trajectories: Sequence[Trajectory]
    ) -> dict[Trajectory, TokenScores]:
        with self.step.ledger.phase("score"):
            scores = self.policy.engine.score(requests, temperature=self.recipe.rollout.temperature)
        return dict(zip(trajectories, scores, strict=True))

    def _check_sampler(self, rows: Sequence[GroupRow]) -> None:
        """Say once aloud where the policy's log-probs of its rollouts are not those that they were sampled with."""
        differences = [
            old - sampled
            for row in rows
            if row["role"] != "repair" and row["sampler_logprobs"] is not None
            for old, sampled in zip(row["old_logprobs"], row["sampler_logprobs"], strict=True)
        ]
        apart, at_most = root_mean_square(differences), FIRST_STEP_TOLERANCE[DTYPES[self.recipe.model.dtype]]
        if not (apart <= at_most or self._told_of_sampler):
            self._told_of_sampler = True
            logger.warning(
                "the policy's log-probs of its rollouts are %.3g nats (root mean square) from those that they were "
                "sampled with, and %.3g at most where numerics alone differ: another policy, temperature, prompt or "
                "picture made them; run df rollout with this policy, these problems and this recipe",
                apart,
                at_most,
            )

    def _check_finite(self, row: GroupRow) -> None:
        """Raises DataError where the row has a token that is never sampled, ModelError where the policy overflows."""
        for token, logprob in zip(row["ids"], row["old_logprobs"], strict=True):
            if not math.isfinite(logprob):
                told = (
                    f"{row['problem_id']}, sample {row['sample']}: the policy's log-prob of token {token} is {logprob}"
                )
                if token in self.policy.engine.codec.banned_ids:
                    raise DataError(f"{told}, it may not be sampled; drop the row")
                raise ModelError(f"{told}; set model.dtype=float32, or take a checkpoint from before it diverged")


def _of_kind(name: str, kind: str | None) -> str:
    """A count's name; problems without a kind are one."""
    return name if kind is None else f"{name} ({kind})"
