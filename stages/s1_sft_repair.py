"""Stage one, supervised: repair set -> repair model (eq. 1), or a policy that has learned the repairs as answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import METRICS, REPAIR_SET
from stages.artifacts.ledger import EVALUATION
from stages.artifacts.manifests import MODEL
from stages.artifacts.plan import Input, Plan
from stages.artifacts.problems import Problem, ProblemSet
from stages.artifacts.step import Step
from stages.audit.auditor import Auditor, NoAuditor
from stages.audit.opening import check_auditor, open_auditor
from stages.checks.problem_check import ProblemCheck
from stages.declared import PromptKind, declare_sft_repair
from stages.engines.loading import embedded_engine, open_model
from stages.engines.models import Models
from stages.errors import DataError
from stages.measures.accuracy import Measure, mean_over_problems
from stages.model.batches import encode_prompt
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import policy_prompt
from stages.recipe import Recipe
from stages.repair.answering import Answerer
from stages.repair.references import References
from stages.repair.repairs import Repairer
from stages.reward.opening import check_reward, open_reward
from stages.runtime.batching import batched
from stages.runtime.prefetch import prefetch
from stages.runtime.progress import track
from stages.seeds import Purpose, derive_seed
from stages.training.checkpoints import SAVE_EVERY, Checkpoints
from stages.training.heldout import (
    Split,
    annotated_draft,
    annotated_reference,
    apart,
    repair_heldout,
    split_repair_set,
    with_end,
    write_summary,
)
from stages.training.losses import SupervisedLoss
from stages.training.metrics import MetricsLog
from stages.training.quantized import check_quantized
from stages.training.tracking import check_trackers, open_trackers
from stages.training.trainer import Trainer, TrainingRow


@dataclass(frozen=True)
class SftRepair:
    """`df sft-repair`."""

    recipe: Recipe
    repair_set: Path
    model: Path
    prompt: PromptKind = "repair"
    """`policy` makes a policy: its own prompt, without error and reference, answered by the repair (our choice)."""
    on_bad_row: OnBadRow = "fail"
    models: Models = field(default_factory=Models)

    @cached_property
    def usable(self) -> ProblemSet:
        """The repair set, every row looked at."""
        rows = ProblemSet(self.repair_set, REPAIR_SET, self.on_bad_row)
        check = ProblemCheck(self.recipe, self.models.codec(self.model, self.recipe), repairs=True)
        return check.usable(rows, rows.ids, self.on_bad_row)

    @cached_property
    def split(self) -> Split:
        """What is trained on shows nothing that a held-out error shows."""
        return apart(self.usable, split_repair_set(self.usable, self.recipe.sft.heldout_share))

    @cached_property
    def declared(self) -> Plan:
        return declare_sft_repair(self.recipe, self.repair_set, self.model, self.prompt)

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        check_reward(self.recipe.reward)
        if self.prompt == "repair":
            check_auditor(self.recipe.audit)
        check_trackers(self.recipe.tracking)
        check_quantized(self.recipe.trainer)
        if not self.split.train:
            raise DataError(
                f"{self.repair_set}: nothing to train on, all {len(self.usable)} of its pairs are held out with "
                f"sft.heldout_share {self.recipe.sft.heldout_share}, or show what these show; lower it, or annotate "
                "more errors"
            )
        return replace(self.declared, dropped=self.usable.bad)

    def run(self, step: Step) -> None:
        recipe, ledger = self.recipe, step.ledger
        repair_set = self.usable
        split = self.split
        with open_trackers(recipe.tracking, step.out, step.plan["recipe"]) as trackers:
            with ledger.phase("load"):
                trainer = self.models.trainer(self.model, recipe, self._trainer)
            log = MetricsLog(trackers)
            step.count_anew()  # the data are read from the start
            for name in split.shown:
                step.drop(name, "shows_what_is_held_out", "what a held-out error shows measures the model")
            checkpoints = Checkpoints(step, {MODEL: trainer}, log, every=SAVE_EVERY)
            with open_reward(recipe.reward) as reward:
                repairer = Repairer(embedded_engine(trainer.vlm, recipe), recipe.prompt, reward, ledger)
                references = References(recipe.prompt.references, recipe.seed, step.tally.counts)
                batches = self._batches(repair_set, split, references)
                with track("sft-repair", len(split.train) * recipe.sft.epochs, "pairs") as advance:
                    for pairs in islice(batches, checkpoints.done):
                        advance(len(pairs))
                    for rows in prefetch([self._row(repairer, *pair) for pair in pairs] for pairs in batches):
                        with ledger.phase("train"):
                            metrics = trainer.step(rows, SupervisedLoss())
                        log.add(trainer.steps_done, metrics)
                        checkpoints.advance()
                        advance(len(rows), log.last_step())
                checkpoints.finish()
                write_summary(step, self._heldout(trainer, repairer, split, step))
        with ledger.phase("save"):
            if self.prompt == "policy":
                trainer.save_weights(step.out / MODEL)  # a policy's training goes on with the optimizer beside it
            else:
                trainer.save(step.out, step.out / MODEL)
            step.write_table(METRICS, log.rows)
        step.tally.rows_in = len(repair_set)
        step.tally.rows_out = len(split.train)
        step.tally.dropped["held_out"] = len(split.heldout)
        step.finish()

    def _trainer(self, vlm: VisionLanguageModel) -> Trainer:
        recipe = self.recipe
        return Trainer(vlm, recipe.sft.optimizer, temperature=1.0, machine=recipe.trainer, seed=recipe.seed)

    def _heldout(self, trainer: Trainer, repairer: Repairer, split: Split, step: Step) -> list[Measure]:
        """What is measured on what was held out: repairs, or of a policy the loss alone."""
        if self.prompt == "policy":
            rows = [self._row(repairer, problem, None, False) for problem in self.usable.many(split.heldout)]
            with step.ledger.phase(EVALUATION):
                return [heldout_loss(trainer, rows)]
        auditor = self._auditor(repairer)
        with trainer.parallel.whole():
            return repair_heldout(repairer, auditor, self.usable, self.recipe, step)

    def _auditor(self, repairer: Repairer) -> Auditor:
        """The repair model starts from the policy, which is opened once more where the auditor asks it."""
        recipe = self.recipe
        if recipe.audit.auditor == "none":
            return NoAuditor()
        with repairer.ledger.phase(EVALUATION):
            engine = embedded_engine(open_model(self.model, recipe), recipe)
        return open_auditor(recipe, Answerer(engine, recipe.prompt, repairer.reward, repairer.ledger))

    def _batches(
        self, repair_set: ProblemSet, split: Split, references: References
    ) -> Iterator[list[tuple[Problem, str | None, bool]]]:
        """Batches of problems, each with its reference, if it is a response, and whether its prompt shows one."""
        section = self.recipe.sft
        rng = np.random.default_rng(derive_seed(self.recipe.seed, Purpose.SFT_ORDER))
        for epoch in range(section.epochs):
            for batch in batched(rng.permutation(split.train).tolist(), section.batch_size):
                problems = repair_set.many(batch)
                shown = (rng.random(len(problems)) >= section.reference_dropout) & (self.prompt == "repair")
                yield [
                    (problem, annotated_reference(references, problem, epoch) if is_shown else None, is_shown)
                    for problem, is_shown in zip(problems, shown.tolist(), strict=True)
                ]

    def _row(self, repairer: Repairer, problem: Problem, response: str | None, with_reference: bool) -> TrainingRow:
        codec = repairer.engine.codec
        if self.prompt == "policy":
            prompt = policy_prompt(codec.processor, self.recipe.prompt, problem)
        else:
            prompt = repairer.prompt(annotated_draft(codec, problem, response), with_reference=with_reference)
        return TrainingRow(encode_prompt(codec, prompt), with_end(codec, problem.extra["repair"]), "repair")


def heldout_loss(trainer: Trainer, rows: Sequence[TrainingRow]) -> Measure:
    """Mean over the rows of eq. 1's negative log-likelihood, in nats a response token of the row."""
    scored = trainer.with_old_logprobs(rows)
    losses = [-float(np.mean(row.old_logprobs_T)) for row in scored]
    return mean_over_problems("held-out repairs as answers", "loss a token", losses)
