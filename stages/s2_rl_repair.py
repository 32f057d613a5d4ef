"""Stage one, by reinforcement: problems, base policy, repair model -> repair model (eq. 2-4)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import DRAFTS, EPISODES, METRICS, REPAIR_SET
from stages.artifacts.manifest import MODEL
from stages.artifacts.problems import PROBLEMS_AT_ONCE, Problem, ProblemSet
from stages.artifacts.step import CHECKPOINTS, Plan, Step
from stages.artifacts.store import iterate_rows, write_rows
from stages.batching import batched
from stages.core.objectives import has_critic
from stages.core.selection import is_correct
from stages.core.values import CriticSettings
from stages.engines.loading import (
    check_same_tokens,
    open_codec,
    open_engine,
    open_model,
    open_sampler,
    recipe_sampling,
    with_engine,
)
from stages.errors import DataError, RecipeError
from stages.model.batches import encode_prompt
from stages.model.loading import VisionLanguageModel
from stages.progress import track
from stages.recipe import Recipe
from stages.scoring.answering import Answerer
from stages.scoring.auditor import AuditCase, Auditor, Verdict, check_auditor, is_audited, open_auditor
from stages.scoring.image_removal import without_image
from stages.scoring.references import References
from stages.scoring.repair_reward import c1_gate, repair_reward
from stages.scoring.repairs import Attempt, Draft, Repairer
from stages.scoring.rewards import check_reward, open_reward
from stages.scoring.usable import ProblemCheck
from stages.scoring.wrong_answers import wrong_answers
from stages.sections import MARK_FIELDS, SAMPLING_FIELDS
from stages.seeds import Purpose, derive_seed
from stages.training.checkpoints import Checkpoints
from stages.training.groups import advantages_of, rows_to_work_on, with_token_advantages
from stages.training.heldout import repair_heldout
from stages.training.losses import PolicyObjective, check_objective, mismatch_metrics
from stages.training.metrics import MetricsLog
from stages.training.tracking import check_trackers, open_trackers
from stages.training.trainer import Trainer, TrainingRow

SAMPLED_WEIGHTS = "sampled-weights"
"""Folder, among the checkpoints, of the weights on their way from the trainer to the engine."""


@dataclass(frozen=True)
class RlRepair:
    """`df rl-repair`."""

    recipe: Recipe
    problems: Path
    policy: Path
    repair_model: Path
    repair_set: Path | None = None
    """Its held-out tenth is repaired at the end."""
    on_bad_row: OnBadRow = "fail"

    @cached_property
    def usable(self) -> ProblemSet:
        """The problems that are drawn, each looked at."""
        problems = ProblemSet(self.problems, on_bad_row=self.on_bad_row)
        drawn = problems.draw(self.recipe.repair_rl.problems, derive_seed(self.recipe.seed, Purpose.RL_PROBLEMS))
        return self._check.usable(problems, drawn, self.on_bad_row)

    @cached_property
    def usable_repair_set(self) -> ProblemSet | None:
        """The repair set, every row looked at: which of them are held out depends on all."""
        if self.repair_set is None:
            return None
        rows = ProblemSet(self.repair_set, REPAIR_SET, self.on_bad_row)
        return self._check.usable(rows, rows.ids, self.on_bad_row)

    @cached_property
    def _check(self) -> ProblemCheck:
        codec = open_codec(self.policy, self.recipe)
        check_same_tokens(self.policy, codec, self.repair_model, open_codec(self.repair_model, self.recipe))
        return ProblemCheck(self.recipe, codec, repairs=True)

    @property
    def inputs(self) -> dict[str, Path]:
        data = {"problems": self.problems, "policy": self.policy, "repair_model": self.repair_model}
        return data | ({} if self.repair_set is None else {"repair_set": self.repair_set})

    def plan(self) -> Plan:
        check_reward(self.recipe.reward)
        check_auditor(self.recipe.audit)
        check_trackers(self.recipe.tracking)
        check_objective(self.recipe.repair_rl.objective, self.recipe.rollout)
        if self.recipe.repair_rl.objective.algorithm == "dpo":
            raise RecipeError(
                "repair_rl.objective.algorithm is dpo, but repairs come in no pairs; take grpo or another"
            )
        sections = ("model", "engine", "prompt", "reward", "audit", "repair_rl", "trainer")
        marks = {"masks": MARK_FIELDS} if self.recipe.audit.auditor == "served" else {}
        recipe = with_engine(self.recipe).subset(*sections, rollout=SAMPLING_FIELDS, sft={"heldout_share"}, **marks)
        bad = self.usable.bad
        if self.usable_repair_set is not None:
            bad = [*bad, *self.usable_repair_set.bad]
        return Plan("rl-repair", recipe, self.recipe.seed, self.inputs, bad)

    def run(self, step: Step) -> None:
        recipe = self.recipe
        with (
            open_trackers(recipe.tracking, step.out, step.plan["recipe"]) as trackers,
            open_reward(recipe.reward) as reward,
        ):
            with step.ledger.phase("load"):
                policy = Answerer(open_engine(self.policy, recipe), recipe.prompt, reward, step.ledger)
                vlm = open_model(self.repair_model, recipe, master_weights=True)
                sampler = open_sampler(vlm, self.repair_model, recipe)
                repairer = Repairer(sampler, recipe.prompt, reward, step.ledger)
                trainer = self._trainer(vlm)
            drafts = ErrorSource(recipe, policy, step).errors(self.usable)
            if not drafts:
                raise DataError(
                    f"{self.problems}: no error to repair ({dict(step.tally.dropped)}); "
                    "raise repair_rl.problems or repair_rl.drafts_per_problem"
                )
            loop = RepairLoop(recipe, repairer, open_auditor(recipe, policy), step, trainer, MetricsLog(trackers))
            checkpoints = Checkpoints(step, {MODEL: trainer}, loop.log, every=1, write_more=loop.write_episodes)
            if step.checkpoint is not None:
                loop.go_on(step.checkpoint)
            with track("rl-repair", recipe.repair_rl.iterations, "iterations") as advance:
                advance(checkpoints.done)
                for iteration in range(checkpoints.done, recipe.repair_rl.iterations):
                    loop.iterate(iteration, loop.draw(drafts, iteration))
                    checkpoints.advance()
                    advance(1)
            if self.usable_repair_set is not None:
                with loop.sampling():
                    repair_heldout(repairer, self.usable_repair_set, recipe, step)
        with step.ledger.phase("save"):
            trainer.save(step.out, step.out / MODEL)
            step.write_table(EPISODES, loop.episodes)
            step.write_table(METRICS, loop.log.rows)
        step.tally.rows_out = len(loop.episodes)
        step.finish()

    def _trainer(self, vlm: VisionLanguageModel) -> Trainer:
        recipe = self.recipe
        anchored = recipe.repair_rl.objective.kl_coef > 0 and recipe.trainer.lora is None
        return Trainer(
            vlm,
            recipe.repair_rl.optimizer,
            temperature=recipe.rollout.temperature,
            machine=recipe.trainer,
            seed=recipe.seed,
            critic_from=self.repair_model if has_critic(recipe.repair_rl.objective.algorithm) else None,
            critic_rate=CriticSettings(**recipe.repair_rl.objective.critic()).critic_rate,
            reference=open_model(self.repair_model, recipe, master_weights=True) if anchored else None,
        )


class ErrorSource:
    """Finds what there is to repair: the policy's errors on problems that need their image."""

    def __init__(self, recipe: Recipe, policy: Answerer, step: Step) -> None:
        self.recipe = recipe
        self.policy = policy
        self.step = step
        self.references = References(recipe.prompt.references, recipe.seed, step.tally.counts)

    def errors(self, problems: ProblemSet) -> list[Draft]:
        """Wrong answers of the policy, those of text-only-solvable problems left out (`dropped.parquet`).

        They are written to `drafts`, part by part, and read from there.
        """
        ids = problems.draw(self.recipe.repair_rl.problems, derive_seed(self.recipe.seed, Purpose.RL_PROBLEMS))
        self.step.tally.rows_in = len(ids)
        with track("rl-repair: looking for errors", len(ids), "problems") as advance:
            for part, names in enumerate(batched(ids, PROBLEMS_AT_ONCE)):
                if not self.step.has_shard(DRAFTS, part):
                    self.step.write_shards(part, {DRAFTS: self._rows(problems.many(names), part)})
                advance(len(names))
        rows = list(iterate_rows(self.step.out, DRAFTS))
        by_id = {p.problem_id: p for p in problems.many(list(dict.fromkeys(row["problem_id"] for row in rows)))}
        return [
            Draft(by_id[row["problem_id"]], row["sample"], row["ids"], row["text"], row["right_response"])
            for row in rows
        ]

    def _rows(self, problems: Sequence[Problem], part: int) -> list[dict[str, Any]]:
        without_need = self._text_only_solvable(problems, part)
        for name in sorted(without_need):
            self.step.drop(name, "text_only_solvable")
        problems = [problem for problem in problems if problem.problem_id not in without_need]
        found = wrong_answers(
            self.policy,
            problems,
            self.recipe.repair_rl.drafts_per_problem,
            recipe_sampling(self.recipe, Purpose.RL_DRAFTS, part),
            self.recipe.reward.threshold,
            self.step.tally,
        )
        return [
            {
                "problem_id": wrong.problem.problem_id,
                "sample": wrong.sample,
                "ids": wrong.answer.completion.ids,
                "text": wrong.answer.text,
                "right_response": self.references.draw(wrong.problem, wrong.sample, wrong.siblings),
            }
            for wrong in found
        ]

    def _text_only_solvable(self, problems: Sequence[Problem], part: int) -> set[str]:
        """Problems whose image the policy does not need: it solves them on the blank image often enough.

        Where unscored answers leave that open, the problem stays.
        """
        section, threshold = self.recipe.repair_rl, self.recipe.reward.threshold
        if section.text_only_tries == 0:
            return set()
        blanked = [without_image(problem, section.blank) for problem in problems if problem.is_visual]
        sampling = recipe_sampling(self.recipe, Purpose.TEXT_ONLY, part)
        groups = self.policy.answer(blanked, section.text_only_tries, sampling)
        return {
            problem.problem_id
            for problem, group in zip(blanked, groups, strict=True)
            if group
            and sum(is_correct(answer.reward, threshold) for answer in group) >= section.text_only_share * len(group)
        }


@dataclass(frozen=True)
class Episode:
    """One attempt with its gates and R_rep."""

    attempt: Attempt
    gate_c1: bool | None
    verdict: Verdict
    repair_reward: float | None

    def row(self, iteration: int) -> dict[str, Any]:
        """A row of `episodes`."""
        return {
            "iteration": iteration,
            "problem_id": self.attempt.draft.problem.problem_id,
            "sample": self.attempt.draft.sample,
            "attempt": self.attempt.index,
            "error": self.attempt.draft.text,
            "text": self.attempt.text,
            "reward": self.attempt.reward,
            "cost": self.attempt.cost,
            "gate_c1": self.gate_c1,
            "gate_audit": None if self.verdict.flagged is None else not self.verdict.flagged,
            "category": self.verdict.category,
            "evidence": self.verdict.evidence,
            "repair_reward": self.repair_reward,
        }


class RepairLoop:
    """Samples repairs, rewards them, trains on them; keeps every episode."""

    def __init__(
        self,
        recipe: Recipe,
        repairer: Repairer,
        auditor: Auditor,
        step: Step,
        trainer: Trainer,
        log: MetricsLog,
    ) -> None:
        self.recipe = recipe
        self.repairer = repairer
        self.auditor = auditor
        self.step = step
        self.trainer = trainer
        self.log = log
        self.objective = PolicyObjective(recipe.repair_rl.objective, recipe.rollout)
        self.episodes: list[dict[str, Any]] = []

    def draw(self, drafts: Sequence[Draft], iteration: int) -> list[Draft]:
        """The errors of one iteration: the next ones of a seeded order that starts again when it ends."""
        count = self.recipe.repair_rl.errors_per_iteration
        first = iteration * count
        passes = range(first // len(drafts), (first + count - 1) // len(drafts) + 1)
        seeds = {number: derive_seed(self.recipe.seed, Purpose.RL_ORDER, number) for number in passes}
        orders = {number: np.random.default_rng(seed).permutation(len(drafts)) for number, seed in seeds.items()}
        return [drafts[orders[i // len(drafts)][i % len(drafts)]] for i in range(first, first + count)]

    def sampling(self) -> AbstractContextManager[None]:
        """Inside, the repair model can generate; an engine of its own needs nothing of the trainer's shards."""
        return self.trainer.parallel.whole() if self.repairer.engine.embedded else nullcontext()

    def iterate(self, iteration: int, drafts: Sequence[Draft]) -> None:
        """One round: repairs of `drafts`, their rewards, the optimizer steps on them."""
        with self.sampling():
            groups = self._episodes(drafts, iteration)
        self.episodes += [episode.row(iteration) for group in groups for episode in group]
        self._count(groups)
        self._train(groups)
        self._sample_from_trainer()
        self.log.add(self.trainer.steps_done, _summary(groups, self.recipe.reward.threshold))

    def write_episodes(self, checkpoint: Path) -> None:
        """Add to a checkpoint what `go_on` reads."""
        write_rows(checkpoint / f"{EPISODES.name}.parquet", EPISODES, self.episodes)

    def go_on(self, checkpoint: Path) -> None:
        """From the episodes of a checkpoint, and the weights that the trainer took from it."""
        self.episodes = list(iterate_rows(checkpoint / f"{EPISODES.name}.parquet", EPISODES))
        self._sample_from_trainer()

    def _sample_from_trainer(self) -> None:
        with self.step.ledger.phase("save"):
            self.repairer.engine.follow(self.trainer.save_weights, self.step.out / CHECKPOINTS / SAMPLED_WEIGHTS)

    def _episodes(self, drafts: Sequence[Draft], iteration: int) -> list[list[Episode]]:
        section = self.recipe.repair_rl
        groups = self.repairer.repair(
            drafts, section.repairs_per_error, recipe_sampling(self.recipe, Purpose.RL_REPAIRS, iteration)
        )
        self.step.tally.dropped["repair_prompt_too_long"] += sum(not group for group in groups)
        drafts = [draft for draft, group in zip(drafts, groups, strict=True) if group]
        groups = [group for group in groups if group]
        image_free = self._image_free(drafts, iteration) if section.c1 else [[] for _ in drafts]
        gates = [self._c1_gate(draft, attempts) for draft, attempts in zip(drafts, image_free, strict=True)]
        cases = [
            AuditCase(attempt, image_needed=gate, image_free=[without.text for without in attempts])
            for group, gate, attempts in zip(groups, gates, image_free, strict=True)
            for attempt in group
        ]
        verdicts = iter(self.auditor.audit(cases))
        return [
            [self._episode(attempt, gate, next(verdicts)) for attempt in group]
            for group, gate in zip(groups, gates, strict=True)
        ]

    def _image_free(self, drafts: Sequence[Draft], iteration: int) -> list[list[Attempt]]:
        """C1's counterfactuals of each draft; none of one that has nothing to look at."""
        section = self.recipe.repair_rl
        groups = self.repairer.repair_without_image(
            drafts,
            section.c1_tries,
            recipe_sampling(self.recipe, Purpose.C1, iteration),
            section.blank,
            with_reference=section.c1_reference == "keep",
        )
        return [group if draft.problem.is_visual else [] for draft, group in zip(drafts, groups, strict=True)]

    def _c1_gate(self, draft: Draft, image_free: Sequence[Attempt]) -> bool | None:
        section = self.recipe.repair_rl
        if not (section.c1 and draft.problem.is_visual):
            return True
        return c1_gate([a.reward for a in image_free], self.recipe.reward.threshold, section.c1_share)

    def _episode(self, attempt: Attempt, gate_c1: bool | None, verdict: Verdict) -> Episode:
        section = self.recipe.repair_rl
        gate_audit = None if verdict.flagged is None else not verdict.flagged
        filtered = self.recipe.audit.effect == "filter" and verdict.flagged
        reward = repair_reward(
            attempt.reward,
            attempt.cost,
            gate_c1,
            gate_audit,
            edit_penalty=section.edit_penalty,
            gating=section.gating,
        )
        return Episode(attempt, gate_c1, verdict, None if filtered else reward)

    def _train(self, groups: Sequence[Sequence[Episode]]) -> None:
        """Optimizer steps on one iteration's repairs; all old log-probs and values are from before the first."""
        section = self.recipe.repair_rl
        steps = [
            rows_to_work_on([row for group in batch for row in group], section.objective)
            for batch in batched(self._training_groups(groups), section.errors_per_step)
        ]
        self.trainer.start_critic([row.advantage for rows, _ in steps for row in rows])
        with self.step.ledger.phase("score"):
            working = iter(self.trainer.with_old_logprobs([row for rows, _ in steps for row in rows]))
        with self.step.ledger.phase("train"):
            for rows, totals in steps:
                if totals.num_sequences:
                    own = with_token_advantages([next(working) for _ in rows], section.objective)
                    metrics = self.trainer.step(own, self.objective, totals) | mismatch_metrics(own)
                    self.log.add(self.trainer.steps_done, metrics)

    def _training_groups(self, groups: Sequence[Sequence[Episode]]) -> list[list[TrainingRow]]:
        """Each error's repairs with their advantages; nulls are left out of the group and its mean."""
        return [self._training_rows(group) for group in groups]

    def _training_rows(self, group: Sequence[Episode]) -> list[TrainingRow]:
        scored = [(episode.attempt, reward) for episode in group if (reward := episode.repair_reward) is not None]
        rewards = [reward for _, reward in scored]
        advantages = advantages_of(
            rewards,
            outcomes=rewards,
            lengths=[len(attempt.ids) for attempt, _ in scored],
            objective=self.recipe.repair_rl.objective,
            max_new_tokens=self.recipe.rollout.max_new_tokens,
        )
        if advantages is None:
            return []
        prompt = encode_prompt(self.repairer.engine.codec, self.repairer.prompt(group[0].attempt.draft))
        return [
            TrainingRow(
                prompt,
                attempt.ids,
                "repair",
                advantage=advantage,
                sampler_logprobs_T=attempt.completion.logprobs,
            )
            for (attempt, _), advantage in zip(scored, advantages, strict=True)
        ]

    def _count(self, groups: Sequence[Sequence[Episode]]) -> None:
        tally = self.step.tally
        for group in groups:
            tally.counts["errors"] += 1
            tally.counts["errors_gated_by_c1"] += group[0].gate_c1 is False
            tally.counts["errors_without_c1"] += group[0].gate_c1 is None
            for episode in group:
                tally.counts["repairs"] += 1
                audited = is_audited(episode.attempt.reward, episode.verdict, self.recipe.reward.threshold)
                tally.counts["repairs_audited"] += audited
                tally.counts["repairs_flagged"] += episode.verdict.flagged is True
                tally.counts["repairs_unaudited"] += episode.verdict.flagged is None
                tally.counts["repairs_unscored"] += episode.attempt.reward is None
                if episode.gate_c1:
                    tally.counts["repairs_c1_open_audited"] += audited
                    tally.counts["repairs_c1_open_flagged"] += episode.verdict.flagged is True
                tally.dropped["without_reward"] += episode.repair_reward is None
                if episode.verdict.category is not None:
                    tally.counts[f"flagged_{episode.verdict.category}"] += 1


def _summary(groups: Sequence[Sequence[Episode]], threshold: float) -> dict[str, float]:
    """Means of an iteration, over its scored repairs; what nothing was measured on is left out."""
    episodes = [episode for group in groups for episode in group if episode.attempt.reward is not None]
    values: dict[str, list[float]] = {
        "accuracy": [is_correct(episode.attempt.reward, threshold) for episode in episodes],
        "edit_cost": [episode.attempt.cost for episode in episodes],
        "repair_reward": [e.repair_reward for e in episodes if e.repair_reward is not None],
        "c1_hit_rate": [group[0].gate_c1 is False for group in groups if group[0].gate_c1 is not None],
        "audit_hit_rate": [
            e.verdict.flagged is True for e in episodes if is_audited(e.attempt.reward, e.verdict, threshold)
        ],
    }
    return {name: float(np.mean(measured)) for name, measured in values.items() if measured}
