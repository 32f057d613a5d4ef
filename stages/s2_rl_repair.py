"""Stage one, by reinforcement: problems, base policy, repair model -> repair model (eq. 2-4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import DRAFTS, EPISODES, METRICS, REPAIR_SET
from stages.artifacts.manifests import MODEL
from stages.artifacts.plan import Input, Plan
from stages.artifacts.problems import PROBLEMS_AT_ONCE, Problem, ProblemSet, open_problems
from stages.artifacts.rows import DraftRow, EpisodeRow
from stages.artifacts.step import Step
from stages.audit.auditor import warn_of_flags
from stages.audit.opening import check_auditor, open_auditor
from stages.checks.problem_check import ProblemCheck
from stages.core.objectives import has_critic
from stages.core.selection import is_correct, reaches_share
from stages.core.values import CriticSettings
from stages.declared import declare_rl_repair
from stages.engines.loading import (
    check_same_tokens,
    open_reference,
    recipe_sampling,
    with_engine,
)
from stages.engines.models import Models
from stages.errors import DataError, RecipeError
from stages.measures.accuracy import Measure, share
from stages.model.loading import VisionLanguageModel
from stages.recipe import Recipe
from stages.repair.answering import Answerer
from stages.repair.image_removal import without_image
from stages.repair.references import References
from stages.repair.repairs import Draft, Repairer
from stages.repair.wrong_answers import draft_row, read_drafts, wrong_answers
from stages.reward.lost_answers import warn_of_none_right
from stages.reward.opening import check_reward, open_reward
from stages.runtime.batching import batched
from stages.runtime.progress import track
from stages.seeds import Purpose, derive_seed
from stages.training.checkpoints import Checkpoints
from stages.training.heldout import HeldOut, repair_heldout, split_repair_set, write_summary
from stages.training.losses import check_objective
from stages.training.metrics import MetricsLog
from stages.training.quantized import check_quantized
from stages.training.repair_loop import RepairLoop
from stages.training.tracking import check_trackers, open_trackers
from stages.training.trainer import Trainer
from stages.untrusted.printable import counted


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
    models: Models = field(default_factory=Models)

    @cached_property
    def usable(self) -> ProblemSet:
        """The problems that are drawn, each looked at."""
        problems = open_problems(self.problems, self.on_bad_row)
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
        codec = self.models.codec(self.policy, self.recipe)
        check_same_tokens(self.policy, codec, self.repair_model, self.models.codec(self.repair_model, self.recipe))
        return ProblemCheck(self.recipe, codec, repairs=True)

    @cached_property
    def declared(self) -> Plan:
        recipe = with_engine(self.recipe)
        return declare_rl_repair(recipe, self.problems, self.policy, self.repair_model, self.repair_set)

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        check_reward(self.recipe.reward)
        check_auditor(self.recipe.audit)
        check_trackers(self.recipe.tracking)
        check_quantized(self.recipe.trainer)
        check_objective(self.recipe.repair_rl.objective, self.recipe.rollout)
        if self.recipe.repair_rl.objective.algorithm == "dpo":
            raise RecipeError(
                "repair_rl.objective.algorithm is dpo, but repairs come in no pairs; take grpo or another"
            )
        bad = self.usable.bad
        if self.usable_repair_set is not None:
            bad = [*bad, *self.usable_repair_set.bad]
        return replace(self.declared, dropped=bad)

    def run(self, step: Step) -> None:
        recipe = self.recipe
        with (
            open_trackers(recipe.tracking, step.out, step.plan["recipe"]) as trackers,
            open_reward(recipe.reward) as reward,
        ):
            with step.ledger.phase("load"):
                policy = Answerer(self.models.engine(self.policy, recipe), recipe.prompt, reward, step.ledger)
                trainer = self.models.trainer(self.repair_model, recipe, self._trainer)
                sampler = self.models.sampler(trainer.vlm, self.repair_model, recipe)
                repairer = Repairer(sampler, recipe.prompt, reward, step.ledger)
            drafts = ErrorSource(recipe, policy, step, self._held_out()).errors(self.usable)
            if not drafts:
                raise DataError(
                    f"{self.problems}: no error to repair ({counted(step.tally.dropped)}); "
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
                    advance(1, loop.log.last_step())
            checkpoints.finish()
            measures = c1_by_kind(loop.episodes, drafts)
            if self.usable_repair_set is not None:
                with loop.sampling():
                    measures += repair_heldout(repairer, loop.auditor, self.usable_repair_set, recipe, step)
            if measures:
                write_summary(step, measures)
            warn_of_flags(step.tally.counts, "repairs")
        with step.ledger.phase("save"):
            trainer.save(step.out, step.out / MODEL)
            step.write_table(EPISODES, loop.episodes)
            step.write_table(METRICS, loop.log.rows)
        step.tally.rows_out = len(loop.episodes)
        step.finish()

    def _held_out(self) -> HeldOut:
        """Of the repair set, whose held-out errors measure what is trained here; nothing without one."""
        rows = self.usable_repair_set
        if rows is None:
            return HeldOut([])
        return HeldOut(rows.many(split_repair_set(rows, self.recipe.sft.heldout_share).heldout))

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
            reference=open_reference(self.repair_model, recipe) if anchored else None,
        )


class ErrorSource:
    """Finds what there is to repair: the policy's errors on problems that need their image."""

    def __init__(self, recipe: Recipe, policy: Answerer, step: Step, held_out: HeldOut) -> None:
        self.recipe = recipe
        self.policy = policy
        self.step = step
        self.held_out = held_out
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
        warn_of_none_right(problems.path, self.step.tally.counts, self.recipe)
        return read_drafts(self.step.out, problems)

    def _rows(self, problems: Sequence[Problem], part: int) -> list[DraftRow]:
        held_out = self.held_out.among(problems)
        for name in sorted(held_out):
            self.step.drop(name, "held_out", "its error, or one of the same picture, measures the model")
        problems = [problem for problem in problems if problem.problem_id not in held_out]
        without_need = self._text_only_solvable(problems, part)
        for name in sorted(without_need):
            self.step.drop(name, "text_only_solvable")
        problems = [problem for problem in problems if problem.problem_id not in without_need]
        found = wrong_answers(
            self.policy,
            problems,
            self.recipe.repair_rl.drafts_per_problem,
            recipe_sampling(self.recipe, Purpose.RL_DRAFTS, part),
            self.recipe,
            self.step.tally,
        )
        return [draft_row(wrong, self.references.draw(wrong.problem, wrong.sample, wrong.siblings)) for wrong in found]

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
            if reaches_share(
                sum(is_correct(answer.reward, threshold) for answer in group), len(group), section.text_only_share
            )
        }


def c1_by_kind(episodes: Sequence[EpisodeRow], drafts: Sequence[Draft]) -> list[Measure]:
    """The share of errors whose gate C1 closed, by kind of problem; empty where no problem has a kind."""
    kinds = {draft.problem.problem_id: draft.problem.kind for draft in drafts}
    gates = {
        (row["iteration"], row["problem_id"], row["sample"]): row["gate_c1"]
        for row in episodes
        if row["gate_c1"] is not None
    }
    closed: dict[str, list[bool]] = defaultdict(list)
    for (_, problem_id, _), gate in gates.items():
        if (kind := kinds[problem_id]) is not None:
            closed[kind].append(not gate)
    return [share("errors with C1 closed", kind, sum(hits), len(hits)) for kind, hits in sorted(closed.items())]
