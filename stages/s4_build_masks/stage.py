"""Difference feedback: rollouts or preferences, repair model -> repairs, groups (eq. 5-8, 12-19)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.artifacts.bad_rows import OnBadRow
from stages.artifacts.columns import GROUPS, PREFERENCES, PROBLEMS, REPAIRS, ROLLOUTS
from stages.artifacts.fingerprint import fingerprint
from stages.artifacts.manifests import is_step, read_manifest
from stages.artifacts.plan import Input, Plan, path_of
from stages.artifacts.problems import PROBLEMS_AT_ONCE, Problem, ProblemSet, open_problems
from stages.artifacts.rows import RolloutRow
from stages.artifacts.step import Step
from stages.artifacts.store import count_rows, iterate_rows, parquet_files
from stages.artifacts.writing import write_text
from stages.audit.auditor import NoAuditor, warn_of_flags
from stages.audit.opening import check_auditor, open_auditor
from stages.checks.problem_check import ProblemCheck
from stages.core.selection import is_correct
from stages.declared import declare_build_masks, own_reward, table_input
from stages.engines.loading import check_same_tokens, engine_name, recipe_sampling, with_engine
from stages.engines.maker import check_maker, maker, warn_of_other_problems
from stages.engines.models import Models
from stages.engines.protocol import Sampling
from stages.errors import DataError, RecipeError
from stages.model.codec import Codec
from stages.recipe import Recipe
from stages.repair.answering import Answerer
from stages.repair.repairs import Repairer
from stages.reward.opening import check_reward, open_reward
from stages.reward.rewards import NONE, score_all
from stages.runtime import processes
from stages.runtime.batching import batched
from stages.runtime.progress import Advance, track
from stages.s4_build_masks.group_builder import Built, GroupBuilder, RolloutShard
from stages.sections import SCORE_COLUMNS
from stages.seeds import Purpose
from stages.training.heldout import with_end

PAGE = "samples.html"


@dataclass(frozen=True)
class BuildMasks:
    """`df build-masks`."""

    recipe: Recipe
    rollouts: Path
    problems: Path
    repair_model: Path | None
    policy: Path
    on_bad_row: OnBadRow = "fail"
    models: Models = field(default_factory=Models)

    @cached_property
    def usable(self) -> ProblemSet:
        """The problems of the rollouts, and these, each looked at."""
        problems = open_problems(self.problems, self.on_bad_row)
        check_maker(self.rollouts, self.policy, self.made_by, self.recipe, remake="df rollout")
        warn_of_other_problems(self.rollouts, table_input(self.problems, PROBLEMS), remake="df rollout")
        if self.repair_model is not None:
            check_rewards(self.rollouts, self.recipe)
        check = ProblemCheck(self.recipe, self.codec, repairs=self.repair_model is not None)
        return check.usable_of(self.rollouts, ROLLOUTS, problems, self.on_bad_row)

    @cached_property
    def codec(self) -> Codec:
        return _codec(self)

    @cached_property
    def declared(self) -> Plan:
        recipe, data = with_engine(self.recipe), {"rollouts": self.rollouts, "problems": self.problems}
        return declare_build_masks(recipe, self.repair_model, self.policy, **data)

    @cached_property
    def made_by(self) -> dict[str, Any]:
        return maker(self.policy, self.codec, self.recipe)

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        parquet_files(self.rollouts, ROLLOUTS)
        return _plan(self)

    def run(self, step: Step) -> None:
        files = parquet_files(self.rollouts, ROLLOUTS)
        with (
            _open_builder(self, step) as builder,
            track("build-masks", count_rows(self.rollouts, ROLLOUTS), "rollouts") as advance,
        ):
            for built in builder.build_each(self._shards(step, files, advance)):
                _write_shard(builder, built)
                advance(count_rows(files[built.index], ROLLOUTS))
        warn_of_flags(step.tally.counts, "candidates")
        step.finish()

    def _shards(self, step: Step, files: Sequence[Path], advance: Advance) -> Iterator[RolloutShard]:
        """Those that no stopped run has finished."""
        for index, file in enumerate(files):
            if step.has_shard(GROUPS, index):
                advance(count_rows(file, ROLLOUTS))
            else:
                rows = [row for row in iterate_rows(file, ROLLOUTS) if row["problem_id"] in self.usable]
                yield RolloutShard(index, rows, _sampling(self.recipe, index))


@dataclass(frozen=True)
class BuildMasksFromPreferences:
    """`df build-masks --preferences`: the rejected responses are the errors, and nothing is rolled out."""

    recipe: Recipe
    preferences: Path
    repair_model: Path | None
    policy: Path
    on_bad_row: OnBadRow = "fail"
    models: Models = field(default_factory=Models)

    @cached_property
    def usable(self) -> ProblemSet:
        """The preferences, every row looked at."""
        rows = ProblemSet(self.preferences, PREFERENCES, self.on_bad_row)
        check = ProblemCheck(self.recipe, self.codec, repairs=self.repair_model is not None)
        return check.usable(rows, rows.ids, self.on_bad_row)

    @cached_property
    def codec(self) -> Codec:
        return _codec(self)

    @cached_property
    def declared(self) -> Plan:
        recipe = with_engine(self.recipe)
        return declare_build_masks(recipe, self.repair_model, self.policy, preferences=self.preferences)

    @cached_property
    def made_by(self) -> dict[str, Any]:
        return maker(self.policy, self.codec, self.recipe)

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        return _plan(self)

    def run(self, step: Step) -> None:
        preferences = self.usable
        with (
            _open_builder(self, step) as builder,
            track("build-masks", len(preferences), "preferences") as advance,
        ):
            for index, ids in enumerate(batched(preferences.ids, PROBLEMS_AT_ONCE)):
                if not step.has_shard(GROUPS, index):
                    # One by one: all processes score the pairs together.
                    rollouts = preference_rollouts(preferences.many(ids), builder)
                    sampling = _sampling(self.recipe, index)
                    for built in builder.build_each([RolloutShard(index, rollouts, sampling)]):
                        _write_shard(builder, built)
                advance(len(ids))
        warn_of_flags(step.tally.counts, "candidates")
        step.finish()


def check_rewards(rollouts: Path, recipe: Recipe) -> None:
    """Refuse rollouts that were scored otherwise than their repairs will be, as far as their manifest tells.

    The rewards of a group are compared with each other. What `reward.name: none` left open was filled in elsewhere.

    Raises:
        DataError: names what differs.
    """
    if not is_step(rollouts):
        return
    manifest, own = read_manifest(rollouts), recipe.model_dump(include={"reward"})["reward"]
    made = manifest["recipe"].get("reward", own)
    decisive = ("name", "judge") if own["name"] == "judge" else ("name",)
    different = [f"reward.{name}" for name in decisive if made.get(name) != own[name]]
    function = own_reward(recipe).get("reward")
    if not different and function is not None:
        scored_by = manifest["inputs"].get("reward", {}).get("sha256")
        different = [] if scored_by in (None, fingerprint(path_of(function))) else [str(path_of(function))]
    if different and made.get("name") != NONE:
        raise DataError(
            f"{rollouts}: scored with other {', '.join(different)} than the repairs would be; run df rollout with "
            "this recipe, or give the recipe that scored them"
        )


def preference_rollouts(problems: Sequence[Problem], builder: GroupBuilder) -> list[RolloutRow]:
    """Preference data as groups of two rollouts: sample 0 the chosen response, sample 1 the rejected one.

    Texts become token ids here, once, by the policy's tokenizer, the end token behind them. A pair whose chosen
    response does not score correct, or whose rejected one does, is left out and counted.
    """
    policy, tally = builder.policy, builder.step.tally
    responses = [(problem, problem.extra[side]) for problem in problems for side in ("chosen", "rejected")]
    with policy.ledger.phase("reward"):
        rewards = score_all(policy.reward, [text for _, text in responses], [p.as_row() for p, _ in responses])
    rows: list[RolloutRow] = [
        {
            "problem_id": problem.problem_id,
            "sample": index % 2,
            "ids": with_end(policy.engine.codec, text),
            "sampler_logprobs": [],  # nobody sampled it
            "reward": reward,
            "finish_reason": "stop",
            "text": text,
        }
        for index, ((problem, text), reward) in enumerate(zip(responses, rewards, strict=True))
    ]
    kept: list[RolloutRow] = []
    for chosen, rejected in batched(rows, 2):
        reason = _unusable(chosen["reward"], rejected["reward"], builder.recipe.reward.threshold)
        if reason is None:
            kept += chosen, rejected
        else:
            tally.rows_in += 2
            tally.dropped[reason] += 2
    return kept


def _unusable(chosen: float | None, rejected: float | None, threshold: float) -> str | None:
    """Why a pair with these rewards shows no error beside a right response."""
    if chosen is None or rejected is None:
        return "unscored"
    if not is_correct(chosen, threshold):
        return "chosen_is_wrong"
    return "rejected_is_correct" if is_correct(rejected, threshold) else None


def _codec(stage: BuildMasks | BuildMasksFromPreferences) -> Codec:
    """The policy's, whose token ids the repair model, if there is one, reads and writes too."""
    codec = stage.models.codec(stage.policy, stage.recipe)
    if stage.repair_model is not None:
        repair_codec = stage.models.codec(stage.repair_model, stage.recipe)
        check_same_tokens(stage.policy, codec, stage.repair_model, repair_codec)
    return codec


def _plan(stage: BuildMasks | BuildMasksFromPreferences) -> Plan:
    recipe, repair_model = stage.recipe, stage.repair_model
    check_reward(recipe.reward)
    check_options(recipe, repair_model)
    if repair_model is not None:
        check_auditor(recipe.audit)
    bad = stage.usable.bad
    return replace(stage.declared, recipe={**stage.declared.recipe, **stage.made_by}, dropped=bad)


def check_options(recipe: Recipe, repair_model: Path | None) -> None:
    """Refuse options that contradict each other.

    Raises:
        RecipeError: names them and the remedy.
    """
    section = recipe.masks
    if section.repairer == "sibling" and repair_model is not None:
        raise RecipeError(
            f"masks.repairer is sibling: no repair model runs; leave out --repair-model {repair_model}, or set "
            "masks.repairer=model"
        )
    if section.repairer == "model" and repair_model is None:
        raise RecipeError("masks.repairer is model: give --repair-model, or set masks.repairer=sibling")
    if section.repairer == "model" and section.keep is not None and engine_name(recipe) == "vllm":
        raise RecipeError(
            f"masks.keep is {section.keep}, but vLLM draws every token; set engine.name=transformers or masks.keep=null"
        )
    if section.repairer == "model" and section.reference == "sibling" and section.on_no_correct == "repair":
        raise RecipeError(
            "masks.on_no_correct is repair, masks.reference is sibling: a problem without a correct rollout has no "
            "sibling; set masks.on_no_correct=skip or another masks.reference"
        )
    if section.repairer == "model" and section.reference not in recipe.prompt.references:
        raise RecipeError(
            f"masks.reference is {section.reference}, of which the repair model was shown none "
            f"(prompt.references: {', '.join(recipe.prompt.references)}); add it there"
        )


@contextmanager
def _open_builder(stage: BuildMasks | BuildMasksFromPreferences, step: Step) -> Iterator[GroupBuilder]:
    recipe, problems, repair_model = stage.recipe, stage.usable, stage.repair_model
    with step.ledger.phase("load"):
        repair_engine = None if repair_model is None else stage.models.engine(repair_model, recipe)
        if repair_engine is not None and recipe.audit.auditor == "rules":  # it lets the policy go on with repairs
            policy_engine = stage.models.engine(stage.policy, recipe, as_trained=True)
        else:
            policy_engine = stage.models.scorer(stage.policy, recipe)
    with open_reward(recipe.reward) as reward:
        answerer = Answerer(policy_engine, recipe.prompt, reward, step.ledger)
        if repair_engine is None:
            yield GroupBuilder(recipe, problems, None, answerer, NoAuditor(), step)
        else:
            repairer = Repairer(repair_engine, recipe.prompt, reward, step.ledger)
            yield GroupBuilder(recipe, problems, repairer, answerer, open_auditor(recipe, answerer), step)


def _sampling(recipe: Recipe, shard: int) -> Sampling:
    return replace(recipe_sampling(recipe, Purpose.CANDIDATES, shard), keep=recipe.masks.keep)


def _write_shard(builder: GroupBuilder, built: Built) -> None:
    step = builder.step
    if built.index == 0 and processes.is_main():
        write_text(step.out / PAGE, builder.page(built))
    # Without the scores that nothing asks for, a file is the one that it was before there were any.
    unasked = set(SCORE_COLUMNS.values()) - {builder.recipe.train.scores}
    step.write_shards(built.index, {REPAIRS: built.repairs, GROUPS.without(unasked): built.groups})
