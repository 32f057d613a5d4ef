"""Variants of one recipe, each trained from the same base policy -> ablation (the paper's tables 3 and 4), curves."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np

from stages.artifacts.columns import ABLATION, CURVES, REPAIR_SET
from stages.artifacts.digests import DIGESTS
from stages.artifacts.fingerprint import fingerprint
from stages.artifacts.lock import lock_output
from stages.artifacts.stage import planned
from stages.artifacts.store import write_rows
from stages.artifacts.writing import writing
from stages.chain import Chain, scores_place
from stages.checks.unseen import check_unseen
from stages.errors import DifferenceFeedbackError, RecipeError, StepError
from stages.measures.accuracy import is_better
from stages.recipe import Recipe, read_values, recipe_file, recipe_with
from stages.runtime.interruption import Requests
from stages.sections import VariantSection
from stages.study.curves import Point, Run, read_runs, repairs_of, rows_of, values_of
from stages.study.figure import FIGURE, draw
from stages.study.results import BASE, result_rows
from stages.study.run_folders import run_folder
from stages.study.spending import Policy, Spending
from stages.study.steps import STAGES, Steps, digest_of

logger = logging.getLogger(__name__)

RATE = "train.optimizer.learning_rate"
TEST, VALIDATION = "test", "validation"


@dataclass(frozen=True)
class Ablation:
    """`df ablate`."""

    recipe: str
    assignments: Sequence[str]
    train: Path
    test: Path
    repair_set: Path | None
    """None where no variant reads one."""
    base: Path
    out: Path
    validation: Path | None = None
    """Problems that learning rates are tuned on."""
    only: Sequence[str] = ()
    """Variants to run; all if empty."""
    launch: Sequence[str] | None = None
    """What the command of a step begins with; None makes the steps in this process."""
    train_launch: Sequence[str] | None = None
    """The same for the steps that train."""
    requests: Requests = field(default_factory=Requests)

    def run(self) -> list[dict[str, Any]]:
        """Every variant with every seed, as far as it is not there; writes, draws and returns the rows of `ablation`.

        A run is recorded in `curves` when it ends, and is not made again where it is recorded. A variant that fails
        is noted in its rows, and the others go on.

        Raises:
            RecipeError: the recipe or a variant of it is not valid.
            DataError, ModelError: an input cannot be used.
            ArtifactError: another ablation writes to `out`.
            Stopped: it was asked to stop, and so was the step under way.
        """
        recipe = self.recipe_with([])
        variants = self._variants(recipe)
        for variant in variants.values():
            self.recipe_with(variant.set)
        self._check_inputs(recipe, variants)
        with lock_output(self.out), self.requests.heard():
            os.environ.setdefault(DIGESTS, str(self.out / "digests.jsonl"))  # each file is hashed once
            steps = Steps(self.out, self.recipe, self.launch, self.train_launch, self.requests)
            runs = list(Runs(self, recipe, steps).of_every(variants))
            rows = result_rows(runs, recipe.ablate.baseline, recipe.ablate.read_at)
            write_rows(self.out / f"{ABLATION.name}.parquet", ABLATION, rows)
            draw(runs, self.out / FIGURE)
        return rows

    def _variants(self, recipe: Recipe) -> dict[str, VariantSection]:
        """Those to run.

        Raises:
            RecipeError: a name is none of a variant, or one matches another that does not run.
        """
        variants = {name: v for name, v in recipe.ablate.variants.items() if not self.only or name in self.only}
        if unknown := set(self.only) - variants.keys():
            known = ", ".join(recipe.ablate.variants)
            raise RecipeError(f"--variant {min(unknown)}: no such variant; there are {known}")
        for name, variant in variants.items():
            if variant.matches is not None and variant.matches not in variants:
                raise RecipeError(
                    f"--variant {name}: it matches {variant.matches}; give --variant {variant.matches} too"
                )
        return variants

    def _check_inputs(self, recipe: Recipe, variants: Mapping[str, VariantSection]) -> None:
        """Each is looked at by a step that reads it, before the first step runs."""
        if recipe.ablate.learning_rates and self.validation is None:
            raise RecipeError("ablate.learning_rates are tuned on problems of their own; give --validation")
        planned(STAGES["rollout"](recipe, problems=self.train, policy=self.base))
        measuring = [problems for problems in (self.test, self.validation) if problems is not None]
        for problems in measuring:
            planned(STAGES["evaluate"](recipe, problems=problems, model=self.base))
            check_unseen(self.train, problems)
        reading = [name for name, variant in variants.items() if variant.reads_repair_set]
        if reading:
            if self.repair_set is None:
                raise RecipeError(f"--variant {reading[0]}: it reads annotated repairs; give --repair-set")
            planned(STAGES["sft-repair"](recipe, repair_set=self.repair_set, model=self.base))
            for problems in measuring:
                check_unseen(self.repair_set, problems, REPAIR_SET)

    def recipe_with(self, assignments: Sequence[str]) -> Recipe:
        """The recipe with these assignments after its own."""
        path, values = self._file
        return recipe_with(values, path, [*self.assignments, *assignments])

    @cached_property
    def _file(self) -> tuple[Path, dict[str, Any]]:
        """The recipe's, read once: it may be edited while a study runs."""
        path = recipe_file(self.recipe)
        return path, read_values(path)


class Runs:
    """The runs of a study: seed by seed each variant, which is tuned before its first."""

    def __init__(self, ablation: Ablation, recipe: Recipe, steps: Steps) -> None:
        self.of = ablation
        self.section = recipe.ablate
        self.threshold = recipe.reward.threshold
        self.steps = steps
        self.file = ablation.out / f"{CURVES.name}.parquet"
        self.known = {run.key: run for run in read_runs(self.file)}

    def of_every(self, variants: Mapping[str, VariantSection]) -> Iterator[Run]:
        """The base policy and every variant, seed by seed."""
        base = VariantSection(repair_model="none", rounds=0)
        for number, seed in enumerate(self.section.seeds):
            done = {BASE: self._run(BASE, base, seed, TEST, None, {})}
            for name, variant in variants.items():
                if variant.seeds is None or number < variant.seeds:
                    try:
                        done[name] = self._run(name, variant, seed, TEST, self._best_rate(name, variant), done)
                    except DifferenceFeedbackError as error:
                        logger.warning("%s, seed %d: %s", name, seed, error)
                        done[name] = Run(name, seed, TEST, error=str(error))
            yield from done.values()

    def _best_rate(self, name: str, variant: VariantSection) -> float | None:
        """`best_rate` on the validation problems. None where there is nothing to tune."""
        if not self.section.learning_rates:
            return None
        seed = self.section.tuning_seed
        runs = {
            rate: self._run(name, variant, seed, VALIDATION, rate, {}) for rate in sorted(self.section.learning_rates)
        }
        accuracy = {rate: float(np.nanmean(run.result.values["sampled"])) for rate, run in runs.items()}
        best = best_rate(accuracy)
        tried = ", ".join(f"{rate:g} with sampled accuracy {found:.3f}" for rate, found in accuracy.items())
        logger.info("%s: learning rate %g of %s", name, best, tried)
        return best

    def _run(
        self,
        name: str,
        variant: VariantSection,
        seed: int,
        problems: str,
        rate: float | None,
        done: Mapping[str, Run],
    ) -> Run:
        """The run, from the record or made and recorded."""
        settings = [*variant.set, *([] if rate is None else [f"{RATE}={rate}"])]
        budget = self.section.device_seconds
        if variant.matches is not None:
            budget = _spent_by(done[variant.matches])
        if variant.rounds is not None:
            budget = None
        rounds = self.section.rounds if variant.rounds is None else variant.rounds
        key = self._key(variant, settings, seed, problems, (budget, rounds))
        if key not in self.known:
            logger.info("%s, seed %d, learning rate %s", name, seed, "of the recipe" if rate is None else f"{rate:g}")
            folder = run_folder(self.of.out, name, seed, rate if problems == VALIDATION else None)
            made = self._make(folder, variant, settings, seed, problems, rounds, budget)
            trained = self.of.recipe_with(settings).train.optimizer.learning_rate
            self.known[key] = replace(made, variant=name, learning_rate=None if name == BASE else trained, key=key)
            write_rows(self.file, CURVES, rows_of(self.known.values()))
            if not self.section.keep_rounds:
                self.steps.remove_rounds(folder)
        return replace(self.known[key], variant=name)

    def _make(
        self,
        folder: Path,
        variant: VariantSection,
        settings: Sequence[str],
        seed: int,
        problems: str,
        rounds: int,
        budget: float | None,
    ) -> Run:
        """Make every step of the run; its folder shows these, and none of another run that was called the same."""
        if folder.is_dir():
            with writing(folder):
                shutil.rmtree(folder)
        spending = Spending(self.steps, self.of.recipe_with(settings), [*self.of.assignments, *settings], folder)
        of = self.of
        chain = Chain(spending.make, of.train, of.base, of.repair_set, seed)
        start = chain.start(variant.start)
        repair_model = chain.repair_model(variant.repair_model, start)
        policies = [spending.policy(start, 0)]
        while len(policies) <= rounds if budget is None else policies[-1].device_seconds < budget:
            made = chain.round(len(policies), policies[-1].folder, repair_model, start)
            policies.append(spending.policy(made.policy, len(policies)))
        points = [
            Point(
                policy.round,
                policy.device_seconds,
                policy.rollouts,
                values_of(
                    chain.scores(scores_place(policy.round), policy.folder, self._problems(problems)), self.threshold
                ),
            )
            for policy in to_evaluate(policies, budget, self.section.evaluations)
        ]
        repairs = {} if repair_model is None else repairs_of(repair_model, self.threshold)
        return Run("", seed, problems, budget=budget, points=points, repairs=repairs)

    def _key(self, variant: VariantSection, settings: Sequence[str], seed: int, problems: str, length: Any) -> str:
        """Of all that a run depends on, wherever its files lie."""
        recipe = self.of.recipe_with(settings)
        unread = {"ablate", "loop", "tracking", "seed"} | (set() if variant.reads_repair_set else {"sft"})
        unread |= set() if variant.repair_model in ("rl", "rl_alone") else {"repair_rl"}
        of = self.of
        files = {"problems": self._problems(problems), "train": of.train, "base": of.base}
        if variant.reads_repair_set:
            assert of.repair_set is not None
            files["repair_set"] = of.repair_set
        own = {
            # A field that later versions add does not make the record another's.
            "recipe": recipe.model_dump(mode="json", exclude_defaults=True, exclude=unread),
            "blank": recipe.repair_rl.blank,
            "repair_model": variant.repair_model,
            "start": variant.start,
            "length": length,
            "evaluations": self.section.evaluations,
            "seed": seed,
        }
        return digest_of(own | {"inputs": {name: {"sha256": fingerprint(path)} for name, path in files.items()}})

    def _problems(self, name: str) -> Path:
        problems = self.of.test if name == TEST else self.of.validation
        assert problems is not None
        return problems


def best_rate(accuracy: Mapping[float, float]) -> float:
    """The learning rate of the highest accuracy; of those that are equally good the lowest."""
    return reduce(lambda best, rate: rate if is_better(accuracy[rate], accuracy[best]) else best, sorted(accuracy))


def to_evaluate(policies: Sequence[Policy], budget: float | None, evaluations: int) -> list[Policy]:
    """The start, and the first policy at each of `evaluations` marks, evenly over the cost; where the budget ends
    inside the last round, the policy before it too.
    """
    end = policies[-1].device_seconds if budget is None else budget
    marks = [end * number / evaluations for number in range(1, evaluations)]
    chosen = {0, len(policies) - 1}
    chosen |= {next(i for i, policy in enumerate(policies) if policy.device_seconds >= mark) for mark in marks}
    if len(policies) > 1 and policies[-1].device_seconds > end:
        chosen.add(len(policies) - 2)
    return [policies[index] for index in sorted(chosen)]


def _spent_by(run: Run) -> float:
    if run.error is not None:
        raise StepError(f"{run.variant} failed, whose device-seconds this variant is to match")
    return run.result.device_seconds
