"""Reinforcement of the repair model: repairs, their gates and rewards, the optimizer steps on them (eq. 2-4)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.artifacts.columns import EPISODES
from stages.artifacts.rows import EpisodeRow
from stages.artifacts.step import CHECKPOINTS, Step
from stages.artifacts.store import iterate_rows, write_rows
from stages.audit.auditor import AuditCase, Auditor, Verdict, count_verdicts, is_audited
from stages.core.repair_rewards import c1_gate, repair_reward
from stages.core.selection import is_correct
from stages.engines.loading import recipe_sampling
from stages.model.batches import encode_prompt
from stages.recipe import Recipe
from stages.repair.repairs import Attempt, Draft, Repairer
from stages.runtime.batching import batched
from stages.seeds import Purpose, derive_seed
from stages.training.groups import advantages_of, rows_to_work_on, with_token_advantages, without_contrast
from stages.training.losses import PolicyObjective, mismatch_metrics
from stages.training.metrics import MetricsLog
from stages.training.trainer import Trainer, TrainingRow

SAMPLED_WEIGHTS = "sampled-weights"
"""Folder, among the checkpoints, of the weights on their way from the trainer to the engine."""


@dataclass(frozen=True)
class Episode:
    """One attempt with its gates and R_rep."""

    attempt: Attempt
    gate_c1: bool | None
    verdict: Verdict
    repair_reward: float | None

    def row(self, iteration: int) -> EpisodeRow:
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
        self.episodes: list[EpisodeRow] = []

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
        rows = [self._training_rows(group) for group in groups]
        self._train(rows)
        self._sample_from_trainer()
        self.log.add(self.trainer.steps_done, _summary(groups, self.recipe.reward.threshold) | _contrast(rows))

    def write_episodes(self, checkpoint: Path) -> None:
        """Add to a checkpoint what `go_on` reads."""
        write_rows(checkpoint / f"{EPISODES.name}.parquet", EPISODES, self.episodes)

    def go_on(self, checkpoint: Path) -> None:
        """Resume after a stop: read the episodes of `checkpoint`, and let the engine sample with the trainer's weights.

        The trainer must have loaded its own state from the same checkpoint before.
        """
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
        gate_audit = None if verdict.against is None else not verdict.against
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

    def _train(self, groups: Sequence[Sequence[TrainingRow]]) -> None:
        """Optimizer steps on one iteration's repairs; all old log-probs and values are from before the first,
        each step's read in its own passes."""
        section = self.recipe.repair_rl
        steps = [
            rows_to_work_on([row for group in batch for row in group], section.objective)
            for batch in batched(groups, section.errors_per_step)
        ]
        self.trainer.start_critic([row.advantage for rows, _ in steps for row in rows])
        with self.step.ledger.phase("score"):
            steps = [(self.trainer.with_old_logprobs(rows, self.objective), totals) for rows, totals in steps]
        with self.step.ledger.phase("train"):
            for rows, totals in steps:
                if totals.num_sequences:
                    own = with_token_advantages(rows, section.objective)
                    metrics = self.trainer.step(own, self.objective, totals) | mismatch_metrics(own)
                    self.log.add(self.trainer.steps_done, metrics)

    def _training_rows(self, group: Sequence[Episode]) -> list[TrainingRow]:
        """One error's repairs with their advantages; nulls are left out of the group and its mean."""
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
            count_verdicts(tally.counts, "repairs", [episode.verdict for episode in group])
            tally.counts["errors"] += 1
            tally.counts["errors_gated_by_c1"] += group[0].gate_c1 is False
            tally.counts["errors_without_c1"] += group[0].gate_c1 is None
            for episode in group:
                tally.counts["repairs"] += 1
                audited = is_audited(episode.attempt.reward, episode.verdict, self.recipe.reward.threshold)
                tally.counts["repairs_audited"] += audited
                tally.counts["repairs_unscored"] += episode.attempt.reward is None
                if episode.gate_c1:
                    tally.counts["repairs_c1_open_audited"] += audited
                    tally.counts["repairs_c1_open_flagged"] += episode.verdict.flagged is True
                tally.dropped["without_reward"] += episode.repair_reward is None


def _summary(groups: Sequence[Sequence[Episode]], threshold: float) -> dict[str, float]:
    """Means of an iteration, over its scored repairs; what nothing was measured on is left out.

    `repair_reward_std` is the population deviation of all of them, `response_length` is in tokens, `cut_share` is the
    share that ends at the length limit.
    """
    episodes = [episode for group in groups for episode in group if episode.attempt.reward is not None]
    rewards = [episode.repair_reward for episode in episodes if episode.repair_reward is not None]
    values: dict[str, list[float]] = {
        "accuracy": [is_correct(episode.attempt.reward, threshold) for episode in episodes],
        "edit_cost": [episode.attempt.cost for episode in episodes],
        "repair_reward": rewards,
        "response_length": [len(episode.attempt.ids) for episode in episodes],
        "cut_share": [episode.attempt.is_cut for episode in episodes],
        "c1_hit_rate": [group[0].gate_c1 is False for group in groups if group[0].gate_c1 is not None],
        "audit_hit_rate": [
            e.verdict.flagged is True for e in episodes if is_audited(e.attempt.reward, e.verdict, threshold)
        ],
    }
    means = {name: float(np.mean(measured)) for name, measured in values.items() if measured}
    return means | ({"repair_reward_std": float(np.std(rewards))} if rewards else {})


def _contrast(groups: Sequence[Sequence[TrainingRow]]) -> dict[str, float]:
    """Share of an iteration's groups, of those that are trained on, of equal rewards."""
    equal = [without_contrast([row.advantage for row in group]) for group in groups if group]
    return {"groups_without_contrast": float(np.mean(equal))} if equal else {}
