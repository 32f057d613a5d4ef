"""Stage two's update: groups, policy -> the next policy (eq. 10-28)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import pyarrow.compute as pc

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import GROUPS, METRICS
from stages.artifacts.manifests import MODEL, is_step, read_manifest
from stages.artifacts.plan import Input, Plan
from stages.artifacts.problems import PROBLEMS_AT_ONCE, ProblemSet, open_problems
from stages.artifacts.step import Step
from stages.artifacts.store import count_rows, parquet_files, read_tables
from stages.checks.problem_check import ProblemCheck
from stages.core.values import CriticSettings
from stages.declared import declare_train_policy, problems_or_preferences, train_anchor
from stages.engines.loading import check_same_tokens, open_model, open_reference
from stages.engines.maker import check_maker, maker, warn_of_other_problems
from stages.engines.models import Models
from stages.errors import DataError
from stages.model.loading import VisionLanguageModel
from stages.recipe import Recipe
from stages.reward.lost_answers import why_none_is_right
from stages.runtime import processes
from stages.runtime.prefetch import prefetch
from stages.runtime.progress import track
from stages.training.checkpoints import SAVE_EVERY, Checkpoints
from stages.training.group_source import GroupSource, rollout_metrics
from stages.training.groups import left_out, rows_to_work_on, with_token_advantages
from stages.training.losses import PolicyObjective, check_objective, mismatch_metrics
from stages.training.metrics import MetricsLog
from stages.training.preferences import PreferenceObjective
from stages.training.prime import PRM, ProcessRewards, prm_folder
from stages.training.quantized import check_quantized
from stages.training.sample_table import sample_table
from stages.training.tracking import check_trackers, open_trackers
from stages.training.trainer import Loss, Trainer
from stages.untrusted.printable import counted


@dataclass(frozen=True)
class TrainPolicy:
    """`df train-policy`."""

    recipe: Recipe
    groups: Path
    problems: Path
    policy: Path
    reference: Path | None = None
    """The policy that the rounds start from, for a KL term to compare with."""
    budget_device_seconds: float | None = None
    """Train until this is spent, passing over the groups as often as it takes; `train.epochs` does not count then."""
    on_bad_row: OnBadRow = "fail"
    models: Models = field(default_factory=Models)

    @cached_property
    def usable(self) -> ProblemSet:
        """The problems of the groups, and these, each looked at."""
        problems = open_problems(self.problems, self.on_bad_row)
        codec = self.models.codec(self.policy, self.recipe)
        own = maker(self.policy, codec, self.recipe)
        check_maker(self.groups, self.policy, own, self.recipe, remake="df build-masks")
        warn_of_other_problems(self.groups, problems_or_preferences(self.problems), remake="df build-masks")
        anchor = train_anchor(self.recipe, self.policy, self.reference)
        if anchor not in (None, self.policy):
            check_same_tokens(self.policy, codec, anchor, self.models.codec(anchor, self.recipe))
        return ProblemCheck(self.recipe, codec).usable_of(self.groups, GROUPS, problems, self.on_bad_row)

    @cached_property
    def declared(self) -> Plan:
        return declare_train_policy(
            self.recipe, self.groups, self.problems, self.policy, self.reference, self.budget_device_seconds
        )

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        parquet_files(self.groups, GROUPS)
        section = self.recipe.train
        check_objective(section.objective, self.recipe.rollout, with_critic=section.advantage != "prime")
        check_trackers(self.recipe.tracking)
        check_quantized(self.recipe.trainer)
        bad = self.usable.bad
        self._check_scores()
        self._check_trainable()
        return replace(self.declared, dropped=bad)

    def run(self, step: Step) -> None:
        recipe, section = self.recipe, self.recipe.train
        with open_trackers(recipe.tracking, step.out, step.plan["recipe"]) as trackers:
            trainer = self._trainer(step)
            objective = self._objective()
            prime = self._process_rewards(step) if section.advantage == "prime" else None
            source = self.source(trainer.vlm, step)
            if section.has_critic:
                trainer.start_critic(source.rewards())
            first = source.read_old(trainer, objective)
            log, advanced = MetricsLog(trackers), 0
            step.count_anew()  # the data are read from the start
            trainers = {MODEL: trainer} | ({} if prime is None else {PRM: prime.trainer})
            checkpoints = Checkpoints(step, trainers, log, every=SAVE_EVERY)
            batches = source.batches()
            deque(islice(batches, checkpoints.done), maxlen=0)
            total = count_rows(self.groups, GROUPS) * section.epochs
            with track("train-policy", total, "trajectories") as advance:
                for groups, batch, read in prefetch((g, source.training_rows(g), source.rows_read) for g in batches):
                    if self._is_spent(step):
                        break
                    with step.ledger.phase("train"):
                        judged, learned = (batch, {}) if prime is None else prime.with_advantages(batch)
                        rows, totals = rows_to_work_on(judged, section.objective)
                        rows = with_token_advantages(rows, section.objective) if section.has_critic else rows
                        metrics = trainer.step(rows, objective, totals) | learned | mismatch_metrics(batch)
                    log.add(trainer.steps_done, metrics | rollout_metrics(groups) | first)
                    first = {}
                    checkpoints.advance()
                    advance(read - advanced, log.last_step())
                    advanced = read
                advance(source.rows_read - advanced, log.last_step())  # problems left out behind the last step
            if trackers.shows_samples:
                trackers.show_samples(sample_table(self.groups, self.usable, trainer.vlm))
        self._check_trained(step, log)
        checkpoints.finish()
        with step.ledger.phase("save"):
            trainer.save(step.out, step.out / MODEL)
            if prime is not None:
                prime.save(step.out)
            step.write_table(METRICS, log.rows)
        step.finish()
        self.models.trained(trainer, self.policy, step.out, recipe)

    def source(self, vlm: VisionLanguageModel, step: Step) -> GroupSource:
        """Open the groups for training; with a budget they are read pass after pass, whatever `train.epochs` says."""
        endless = self.budget_device_seconds is not None
        return GroupSource(self.recipe, self.groups, self.usable, vlm, step, endless=endless)

    def _objective(self) -> Loss:
        section = self.recipe.train.objective
        return (
            PreferenceObjective(section)
            if section.algorithm == "dpo"
            else PolicyObjective(section, self.recipe.rollout, with_critic=self.recipe.train.has_critic)
        )

    def _trainer(self, step: Step) -> Trainer:
        recipe, section = self.recipe, self.recipe.train
        with step.ledger.phase("load"):
            anchor = train_anchor(recipe, self.policy, self.reference)
            reference = None if anchor is None else open_reference(anchor, recipe)
            return self.models.trainer(
                self.policy,
                recipe,
                lambda vlm: Trainer(
                    vlm,
                    section.optimizer,
                    temperature=recipe.rollout.temperature,
                    machine=recipe.trainer,
                    reference=reference,
                    resume_from=self.policy,
                    critic_from=self.policy if section.has_critic else None,
                    critic_rate=CriticSettings(**section.objective.critic()).critic_rate,
                    seed=recipe.seed,
                ),
            )

    def _process_rewards(self, step: Step) -> ProcessRewards:
        recipe, section = self.recipe, self.recipe.train.prime
        with step.ledger.phase("load"):
            start = prm_folder(self.policy)
            beside = self.policy if start == self.policy else self.policy / PRM
            trainer = Trainer(
                open_model(start, recipe, master_weights=True, beside=beside),
                section.optimizer,
                temperature=recipe.rollout.temperature,
                machine=recipe.trainer,
                resume_from=self.policy / PRM,
                seed=recipe.seed,
            )
        return ProcessRewards(trainer, section)

    def _is_spent(self, step: Step) -> bool:
        budget = self.budget_device_seconds
        return budget is not None and processes.on_main(lambda: step.ledger.spent >= budget)

    def _check_trained(self, step: Step, log: MetricsLog) -> None:
        """Raises DataError where no step was done."""
        if log.rows:
            return
        if step.tally.rows_out and self._is_spent(step):
            raise DataError(
                f"{self.groups}: what comes before training took {step.ledger.spent:.1f} device-seconds of a budget of "
                f"{self.budget_device_seconds:g}, and no step was done; raise --budget-device-seconds"
            )
        raise self._nothing_to_train_on(step.tally.dropped)

    def _check_scores(self) -> None:
        """Raises DataError where the groups lack what the recipe's gate or advantage is made of."""
        section = self.recipe.train
        name, asks = section.scores, "gate" if section.gate != "none" else "advantage"
        if name is None:
            return
        value = getattr(section, asks)
        for shard in parquet_files(self.groups, GROUPS):
            for table in map(GROUPS.with_optional, read_tables(shard, PROBLEMS_AT_ONCE, ["role", name])):
                if pc.any(pc.and_(pc.is_null(table[name]), pc.not_equal(table["role"], "repair"))).as_py():
                    raise DataError(
                        f"{shard}: rollouts without {name}, which train.{asks} {value} is made of; run df build-masks "
                        f"again with train.{asks}={value}"
                    )

    def _check_trainable(self) -> None:
        """Raises DataError where no group has anything to train on."""
        reasons: Counter[str] = Counter()
        columns = ["problem_id", "role", "in_pair"]
        columns += ["sample", "mask", "old_logprobs"] if self.recipe.train.support else []
        for shard in parquet_files(self.groups, GROUPS):
            tables = read_tables(shard, PROBLEMS_AT_ONCE, columns)
            rows = (row for table in tables for row in table.to_pylist())
            for problem_id, group in groupby(rows, key=lambda row: row["problem_id"]):
                reason = left_out(list(group), self.recipe.train) if problem_id in self.usable else "bad_row"
                if reason is None:
                    return
                reasons[reason] += 1
        raise self._nothing_to_train_on(reasons)

    def _nothing_to_train_on(self, reasons: Mapping[str, int]) -> DataError:
        counts = read_manifest(self.groups)["counts"] if is_step(self.groups) else {}
        none_right = counts.get("problems") and counts.get("problems_none_correct") == counts["problems"]
        remedy = "raise rollout.samples_per_problem or look at the repairs"
        return DataError(
            f"{self.groups}: no group has anything to train on ({counted(reasons)}); "
            f"{why_none_is_right(counts, self.recipe) if none_right else remedy}"
        )
