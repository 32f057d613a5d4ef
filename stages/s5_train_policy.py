"""Stage two's update: groups, policy -> the next policy (eq. 10-23)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path

import numpy as np

from stages.artifacts.columns import GROUPS, METRICS
from stages.artifacts.problems import ProblemSet
from stages.artifacts.step import MODEL, Plan, Step
from stages.artifacts.store import count_rows, iterate_rows, parquet_files
from stages.engines.loading import check_model, open_engine
from stages.errors import DataError
from stages.model.batches import encode_prompt
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import policy_prompt
from stages.progress import track
from stages.recipe import SAMPLING_FIELDS, Recipe
from stages.seeds import derive_seed
from stages.training.groups import Trajectory, optimization_group
from stages.training.losses import check_objective, policy_objective
from stages.training.metrics import MetricsLog
from stages.training.trainer import Totals, Trainer, TrainingRow


@dataclass(frozen=True)
class TrainPolicy:
    """`df train-policy`."""

    recipe: Recipe
    groups: Path
    problems: Path
    policy: Path
    budget_device_seconds: float | None = None
    """Train until this is spent, passing over the groups as often as it takes; `train.epochs` does not count then."""

    def plan(self) -> Plan:
        ProblemSet(self.problems)
        parquet_files(self.groups, GROUPS)
        check_model(self.policy)
        check_objective(self.recipe.train.objective)
        recipe = self.recipe.subset("model", "prompt", "train", rollout=SAMPLING_FIELDS)
        inputs = {"groups": self.groups, "problems": self.problems, "policy": self.policy}
        budget = {"budget_device_seconds": self.budget_device_seconds}
        return Plan("train-policy", recipe | budget, self.recipe.seed, inputs)

    def run(self, step: Step) -> None:
        recipe, section = self.recipe, self.recipe.train
        with step.ledger.phase("load"):
            engine = open_engine(self.policy, recipe, training=True)
        trainer = Trainer(
            engine.vlm,
            section.optimizer,
            temperature=recipe.rollout.temperature,
            mixed_precision=recipe.model.mixed_precision,
            resume_from=self.policy,
        )
        objective = policy_objective(section.objective, recipe.rollout)
        source = GroupSource(self, engine.vlm, step)
        log = MetricsLog()
        total = count_rows(self.groups, GROUPS) * section.epochs
        with track("train-policy", total, "trajectories") as advance:
            for groups in source.batches():
                with step.ledger.phase("train"):
                    rows, totals = source.training_rows(groups)
                    log.add(trainer.steps_done + 1, trainer.step(rows, objective, totals))
                advance(totals.num_sequences)
        if not log.rows:
            raise DataError(
                f"{self.groups}: no group has anything to train on ({dict(step.tally.dropped)}); "
                "raise rollout.samples_per_problem or look at the repairs"
            )
        with step.ledger.phase("save"):
            trainer.save(step.out, step.out / MODEL)
            step.write_table(METRICS, log.rows)
        step.finish()


class GroupSource:
    """Reads groups shard by shard and makes optimizer steps of them; memory does not grow with their number."""

    def __init__(self, stage: TrainPolicy, vlm: VisionLanguageModel, step: Step) -> None:
        self.recipe = stage.recipe
        self.budget = stage.budget_device_seconds
        self.groups = stage.groups
        self.problems = ProblemSet(stage.problems)
        self.vlm = vlm
        self.step = step

    def batches(self) -> Iterator[list[list[Trajectory]]]:
        """Groups of one optimizer step at a time, in seeded order, until epochs or budget are used up."""
        waiting: list[list[Trajectory]] = []
        for epoch in range(self.recipe.train.epochs) if self.budget is None else count():
            trained = False
            for group in self._epoch(epoch):
                waiting.append(group)
                if len(waiting) == self.recipe.train.problems_per_step:
                    if self._spent():
                        return
                    yield waiting
                    waiting, trained = [], True
            if waiting and not self._spent():
                yield waiting
                waiting, trained = [], True
            if not trained:
                return

    def training_rows(self, groups: Sequence[Sequence[Trajectory]]) -> tuple[list[TrainingRow], Totals]:
        """The rows that have a gradient, and the denominators over all of them.

        A trajectory whose advantage or whole gate is zero adds nothing to the policy term; with a KL term every
        trajectory is worked on.
        """
        everything = [trajectory for group in groups for trajectory in group]
        totals = Totals(len(everything), sum(len(trajectory.row["ids"]) for trajectory in everything))
        rows = [row for group in groups for row in self._rows(group)]
        return rows, totals

    def _rows(self, group: Sequence[Trajectory]) -> list[TrainingRow]:
        needed = [t for t in group if self._keeps_all or (t.advantage != 0 and any(t.gate_T))]
        if not needed:
            return []
        problem = self.problems[needed[0].row["problem_id"]]
        prompt = policy_prompt(self.vlm.processor, self.recipe.prompt, problem.question, problem.images)
        encoded = encode_prompt(self.vlm, prompt)
        return [
            TrainingRow(encoded, t.row["ids"], t.row["role"], t.advantage, t.gate_T, t.row["old_logprobs"])
            for t in needed
        ]

    def _epoch(self, epoch: int) -> Iterator[list[Trajectory]]:
        rng = np.random.default_rng(derive_seed(self.recipe.seed, 13, epoch))
        shards = parquet_files(self.groups, GROUPS)
        for shard in rng.permutation(len(shards)):
            by_problem = groupby(iterate_rows(shards[shard], GROUPS), key=lambda row: row["problem_id"])
            problems = [list(rows) for _, rows in by_problem]
            for index in rng.permutation(len(problems)):
                group = optimization_group(problems[index], self.recipe.train, self.recipe.rollout)
                self._count(group, first_epoch=epoch == 0)
                if self._has_gradient(group):
                    yield group

    def _count(self, group: Sequence[Trajectory], *, first_epoch: bool) -> None:
        if not first_epoch:
            return
        tally = self.step.tally
        tally.rows_in += 1
        if not group:
            tally.dropped["no_trajectory"] += 1
        elif not self._has_gradient(group):
            tally.dropped["equal_rewards"] += 1
        else:
            tally.rows_out += 1

    @property
    def _keeps_all(self) -> bool:
        """A KL term acts on every trajectory."""
        return self.recipe.train.objective.kl_coef > 0

    def _has_gradient(self, group: Sequence[Trajectory]) -> bool:
        return any(self._keeps_all or trajectory.advantage != 0 for trajectory in group)

    def _spent(self) -> bool:
        return self.budget is not None and self.step.ledger.total >= self.budget
