"""Groups, read shard by shard in seeded order -> the rows of one optimizer step after another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from stages.artifacts.columns import GROUPS, OLD_LOGPROBS, VALUES, Row, TableSpec
from stages.artifacts.problems import ProblemSet
from stages.artifacts.step import Step
from stages.artifacts.store import iterate_rows, parquet_files
from stages.errors import DataError
from stages.model.batches import encode_prompt
from stages.model.loading import VisionLanguageModel
from stages.model.mixed_precision import is_quantized
from stages.model.prompts import policy_prompt
from stages.recipe import Recipe
from stages.runtime.batching import batched
from stages.runtime.progress import track
from stages.seeds import Purpose, derive_seed
from stages.training.groups import (
    TrainedRow,
    Trajectory,
    left_out,
    optimization_group,
    rows_to_work_on,
    supported,
    with_batch_gates,
    without_contrast,
)
from stages.training.losses import check_first_step, first_step_ratio
from stages.training.trainer import Loss, Trainer, TrainingRow


class Group(NamedTuple):
    """One problem's rows of a shard of `groups`, and what is trained on of them."""

    shard: int
    rows: Sequence[TrainedRow]
    trajectories: list[Trajectory]


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the policy sampled for the problems of one optimizer step, over all scored rollouts, trained on or not.

    `reward_std` is their population deviation, `response_length` is in tokens, `cut_share` is the share that ends at
    the length limit; `groups_without_contrast` is the share of the groups (`without_contrast`). Rejected responses of
    preference data count as rollouts, repairs do not.
    """
    rollouts = [row for group in groups for row in group.rows if row["role"] != "repair"]
    rewards = [row["reward"] for row in rollouts]
    values = {
        "reward_mean": np.mean(rewards),
        "reward_std": np.std(rewards),
        "response_length": np.mean([len(row["ids"]) for row in rollouts]),
        "cut_share": np.mean([row["finish_reason"] == "length" for row in rollouts]),
        "groups_without_contrast": np.mean([without_contrast([t.advantage for t in g.trajectories]) for g in groups]),
    }
    return {name: float(value) for name, value in values.items()}


class GroupSource:
    """Reads groups shard by shard and makes optimizer steps of them; memory does not grow with their number.

    `rows_read` and the step's tally tell what was read, which may be a step ahead of what was trained on.
    """

    def __init__(
        self,
        recipe: Recipe,
        groups: Path,
        problems: ProblemSet,
        vlm: VisionLanguageModel,
        step: Step,
        *,
        endless: bool,
    ) -> None:
        self.recipe = recipe
        self.groups = groups
        self.problems = problems
        self.endless = endless
        self.vlm = vlm
        self.step = step
        self.rows_read = 0

    def batches(self) -> Iterator[list[Group]]:
        """Groups of one optimizer step at a time, in seeded order: as many epochs as the recipe has, or where it is
        `endless` without end.

        A pass in which no group has a contrast of rewards is the last one: nothing would ever be learned from it, but
        for a critic's values, or PRIME's, whose model tells groups apart.
        """
        every_group_teaches = self.recipe.train.has_critic or self.recipe.train.advantage == "prime"
        for epoch in count() if self.endless else range(self.recipe.train.epochs):
            contrast = every_group_teaches
            for groups in batched(self._epoch(epoch), self.recipe.train.problems_per_step):
                contrast = contrast or any(t.advantage != 0 for group in groups for t in group.trajectories)
                yield groups
            if not contrast:
                return

    def training_rows(self, groups: Sequence[Group]) -> list[TrainingRow]:
        """The trajectories of the groups of one optimizer step with their gates and the policy's prompt."""
        gated = with_batch_gates([group.trajectories for group in groups], self.recipe.train)
        return [row for group in gated for row in self._rows(group)]

    def _rows(self, group: Sequence[Trajectory]) -> list[TrainingRow]:
        problem = self.problems[group[0].row["problem_id"]]
        encoded = encode_prompt(self.vlm, policy_prompt(self.vlm.processor, self.recipe.prompt, problem))
        return [
            TrainingRow(
                encoded,
                t.row["ids"],
                t.row["role"],
                t.advantage,
                t.gate_T,
                t.row["old_logprobs"],
                t.row.get("values", ()),
                t.advantage_T,
                sampler_logprobs_T=self._sampler_logprobs(t.row),
            )
            for t in group
        ]

    def rewards(self) -> list[float]:
        """Those of all trajectories that are trained on."""
        groups = (self._group(rows) for shard in parquet_files(self.groups, GROUPS) for rows in self._problems(shard))
        return [trajectory.advantage for group in groups for trajectory in group]

    def _sampler_logprobs(self, row: TrainedRow) -> list[float] | None:
        """Raises DataError where a rollout has none and the recipe weighs by them."""
        logprobs = row["sampler_logprobs"]
        if logprobs is None and row["role"] != "repair" and self.recipe.train.objective.importance_cap is not None:
            raise DataError(
                f"{self.groups}: {row['problem_id']}, sample {row['sample']}, has no sampler_logprobs, which "
                "train.objective.importance_cap takes; run df build-masks on rollouts, or set it to null"
            )
        return logprobs

    def read_old(self, trainer: Trainer, loss_function: Loss) -> dict[str, float]:
        """Write what policy and critic say before the training starts, read in the passes of the first epoch's steps.

        That is `values` where there is a critic, and `old_logprobs` where the policy computes in less than float32, or
        rests in four bits: a step's passes round there otherwise than those that made the groups. Returns the metric of
        the first step that compares with these.
        """
        tables = self._tables(trainer)
        trained = (group for group in self._in_order(0, as_stored=True) if group.trajectories)
        steps: Iterator[list[Group]] = batched(trained, self.recipe.train.problems_per_step)
        if not tables:
            steps = islice(steps, self.step.checkpoint is None)  # the first one, at the weights that it starts from
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        metrics: dict[str, float] = {}
        total = len(self.problems) if tables else min(len(self.problems), self.recipe.train.problems_per_step)
        with track("train-policy: old log-probs", total, "problems") as advance:
            for number, groups in enumerate(steps):
                is_first = number == 0 and self.step.checkpoint is None
                unread = {g.shard for g in groups if not all(self.step.has_shard(spec, g.shard) for spec in tables)}
                if unread or is_first:
                    rows, read = self._read(groups, trainer, loss_function)
                    metrics |= self._first_step(rows, read, trainer, loss_function) if is_first else {}
                    self._keep(found, groups, read)
                for shard in sorted(found.keys() - {groups[-1].shard}):
                    self._write_old(shard, found.pop(shard), tables)
                advance(len(groups))
        for shard, rows_of_shard in found.items():
            self._write_old(shard, rows_of_shard, tables)
        return metrics

    def _tables(self, trainer: Trainer) -> list[TableSpec[Any]]:
        """What `read_old` writes."""
        rounds = trainer.vlm.autocast_dtype is not None or is_quantized(trainer.machine)
        return [VALUES] * self.recipe.train.has_critic + [OLD_LOGPROBS] * rounds

    def _read(
        self, groups: Sequence[Group], trainer: Trainer, loss_function: Loss
    ) -> tuple[list[TrainingRow], list[TrainingRow | None]]:
        """The rows of a step, and those with what is read in it; None where it does not work on one."""
        by_token = self.recipe.train.advantage == "prime"  # which gives every token one
        with self.step.ledger.phase("score"):
            rows = self.training_rows(groups)
            work = rows if by_token else rows_to_work_on(rows, self.recipe.train.objective)[0]
            read = trainer.with_old_logprobs(work, loss_function)
        by_row = {id(row): own for row, own in zip(work, read, strict=True)}
        return rows, [by_row.get(id(row)) for row in rows]

    def _first_step(
        self,
        rows: Sequence[TrainingRow],
        read: Sequence[TrainingRow | None],
        trainer: Trainer,
        loss_function: Loss,
    ) -> dict[str, float]:
        both = [(row, own) for row, own in zip(rows, read, strict=True) if own is not None]
        ratio = first_step_ratio([row for row, _ in both], [own for _, own in both], loss_function)
        if ratio is None:
            return {}
        if not is_quantized(trainer.machine):  # four bits are further off than any rounding
            check_first_step(ratio, self.groups, trainer.vlm.autocast_dtype or trainer.vlm.model.dtype)
        return {"ratio_first_step": ratio}

    def _keep(
        self, found: dict[int, list[dict[str, Any]]], groups: Sequence[Group], read: Sequence[TrainingRow | None]
    ) -> None:
        """Add rows of `values` and `old_logprobs` to those that were found of each shard."""
        trajectories = [(group.shard, t.row) for group in groups for t in group.trajectories]
        for (shard, row), own in zip(trajectories, read, strict=True):
            if own is not None:
                key = {name: row[name] for name in ("problem_id", "sample", "role")}
                found[shard].append(key | {VALUES.name: own.values_T, OLD_LOGPROBS.name: own.old_logprobs_T})

    def _write_old(self, shard: int, rows: Sequence[Mapping[str, Any]], tables: Sequence[TableSpec[Any]]) -> None:
        """Unless a stopped run has."""
        if all(self.step.has_shard(spec, shard) for spec in tables):
            return
        names = {spec: [column.name for column in spec.columns] for spec in tables}
        self.step.write_shards(shard, {spec: [{n: row[n] for n in names[spec]} for row in rows] for spec in tables})

    def _epoch(self, epoch: int) -> Iterator[Group]:
        for group in self._in_order(epoch):
            self.rows_read += len(group.rows)
            if epoch == 0:
                self._count(group.rows, group.trajectories)
            if group.trajectories:
                yield group

    def _in_order(self, epoch: int, *, as_stored: bool = False) -> Iterator[Group]:
        """Each problem, in the epoch's order, with what `read_old` wrote of it, or as the groups have it."""
        rng = np.random.default_rng(derive_seed(self.recipe.seed, Purpose.GROUP_ORDER, epoch))
        shards = parquet_files(self.groups, GROUPS)
        for shard in map(int, rng.permutation(len(shards))):
            problems = list(self._problems(shards[shard]))
            if not as_stored:
                problems = self._with_old(problems, shard)
            for index in rng.permutation(len(problems)):
                yield Group(shard, problems[index], self._group(problems[index]))

    def _problems(self, shard: Path) -> Iterator[list[TrainedRow]]:
        """Rows of each problem of a shard of `groups`."""
        every = cast("Iterator[TrainedRow]", iterate_rows(shard, GROUPS))
        for problem_id, rows in groupby(every, key=lambda row: row["problem_id"]):
            if problem_id in self.problems:
                yield list(rows)

    def _group(self, rows: Sequence[TrainedRow]) -> list[Trajectory]:
        return optimization_group(rows, self.recipe.train, self.recipe.rollout)

    def _with_old(self, problems: Sequence[Sequence[TrainedRow]], shard: int) -> list[list[TrainedRow]]:
        values = {(row["problem_id"], row["sample"]): row["values"] for row in self._written(VALUES, shard)}
        logprobs = {
            (row["problem_id"], row["sample"], row["role"]): row["old_logprobs"]
            for row in self._written(OLD_LOGPROBS, shard)
        }

        def found(row: TrainedRow) -> TrainedRow:
            key = row["problem_id"], row["sample"]
            stored = row["old_logprobs"]
            read = logprobs.get((*key, row["role"]), stored)
            old: TrainedRow = {**row, "old_logprobs": read, "stored_logprobs": stored}
            if row["role"] != "repair" and key in values:
                old["values"] = values[key]
            return old

        return [[found(row) for row in rows] for rows in problems]

    def _written(self, spec: TableSpec[Row], shard: int) -> Iterator[Row]:
        if self.step.has_shard(spec, shard):
            yield from iterate_rows(self.step.out / f"{spec.name}-{shard:05d}.parquet", spec)

    def _count(self, rows: Sequence[TrainedRow], group: Sequence[Trajectory]) -> None:
        tally = self.step.tally
        tally.rows_in += 1
        tally.rows_out += bool(group)
        if support := self.recipe.train.support:
            believed = supported(rows, support)
            tally.counts["repairs_unsupported"] += len(rows) - len(believed)
            rows = believed
        pairs_only = self.recipe.train.objective.algorithm == "dpo"
        if pairs_only:
            tally.counts["ungated_errors_without_pair"] += sum(row["in_pair"] for row in rows) - len(group)
        reason = left_out(rows, self.recipe.train)
        if reason is None:
            tally.counts["groups_of_equal_rewards"] += without_contrast([t.advantage for t in group])
        else:
            tally.dropped[reason] += 1
