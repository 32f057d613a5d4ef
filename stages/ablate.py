"""Variants of one recipe, each trained from the same base policy -> ablation (the paper's tables 3 and 4)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from stages.ablation import BASE, VariantRun, ablation_rows
from stages.artifacts.columns import ABLATION
from stages.artifacts.digests import DIGESTS
from stages.artifacts.ledger import training_cost
from stages.artifacts.lock import lock_output
from stages.artifacts.notes import MANIFEST, read_manifest
from stages.artifacts.stage import planned
from stages.artifacts.store import write_rows
from stages.artifacts.writing import writing
from stages.errors import DifferenceFeedbackError, StepError
from stages.evaluate import Evaluate
from stages.interruption import Requests, Stopped
from stages.recipe import Recipe, load_recipe
from stages.s1_sft_repair import SftRepair
from stages.s2_rl_repair import RlRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s5_train_policy import TrainPolicy
from stages.sections import VariantSection

logger = logging.getLogger(__name__)

STAGES: Mapping[str, Callable[..., Any]] = {
    "sft-repair": SftRepair,
    "rl-repair": RlRepair,
    "rollout": Rollout,
    "build-masks": BuildMasks,
    "train-policy": TrainPolicy,
    "evaluate": Evaluate,
}
TRAINING = {"sft-repair", "rl-repair", "train-policy"}
COMMAND = (sys.executable, "-m", "df_cli")
STEPS, LOGS = "steps", "logs"
STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM)}
"""Exit statuses of a step that was asked to stop."""
POLL_S = 0.5


@dataclass(frozen=True)
class Ablation:
    """`df ablate`."""

    recipe: str
    assignments: Sequence[str]
    train: Path
    test: Path
    repair_set: Path
    base: Path
    out: Path
    launch: Sequence[str] = COMMAND
    """What the command of a step begins with."""
    train_launch: Sequence[str] = COMMAND
    """The same for the steps that train."""

    def run(self) -> list[dict[str, Any]]:
        """Every variant with every seed, as far as it is not there; writes and returns the rows of `ablation`.

        A variant that fails is noted in its rows, and the others go on.

        Raises:
            RecipeError: the recipe or a variant of it is not valid.
            DataError, ModelError: an input cannot be used.
            ArtifactError: another ablation writes to `out`.
            Stopped: it was asked to stop, and so was the step under way.
        """
        recipe = load_recipe(self.recipe, self.assignments)
        for variant in recipe.ablate.variants.values():
            self.recipe_with(variant.set)
        self._check_inputs(recipe)
        with lock_output(self.out):
            with writing(self.out):
                (self.out / LOGS).mkdir(exist_ok=True)
            os.environ.setdefault(DIGESTS, str(self.out / "digests.jsonl"))  # its commands hash each file once
            runs = [run for seed in recipe.ablate.seeds for run in self._with_seed(seed, recipe)]
            rows = ablation_rows(runs, recipe.ablate.baseline, recipe.reward.threshold)
            write_rows(self.out / f"{ABLATION.name}.parquet", ABLATION, rows)
        return rows

    def _check_inputs(self, recipe: Recipe) -> None:
        """Each is looked at by a step that reads it, before the first step runs."""
        planned(STAGES["rollout"](recipe, problems=self.train, policy=self.base))
        planned(STAGES["evaluate"](recipe, problems=self.test, model=self.base))
        if any(variant.repair_model != "none" for variant in recipe.ablate.variants.values()):
            planned(STAGES["sft-repair"](recipe, repair_set=self.repair_set, model=self.base))

    def recipe_with(self, assignments: Sequence[str]) -> Recipe:
        """The recipe with these assignments after its own."""
        return load_recipe(self.recipe, [*self.assignments, *assignments])

    def _with_seed(self, seed: int, recipe: Recipe) -> Iterable[VariantRun]:
        done: dict[str, VariantRun] = {}
        for name, variant in {BASE: VariantSection(repair_model="none", rounds=0), **recipe.ablate.variants}.items():
            logger.info("%s, seed %d", name, seed)
            try:
                done[name] = self._train(name, variant, seed, recipe.ablate.rounds, done)
            except DifferenceFeedbackError as error:
                logger.warning("%s, seed %d: %s", name, seed, error)
                done[name] = VariantRun(name, seed, error=str(error))
        return done.values()

    def _train(
        self, name: str, variant: VariantSection, seed: int, rounds: int, done: Mapping[str, VariantRun]
    ) -> VariantRun:
        chain = Chain(self, variant.set, seed)
        repair_model = chain.repair_model(variant.repair_model)
        rounds = rounds if variant.rounds is None else variant.rounds
        budget = None if variant.matches is None else _spent_by(done[variant.matches])
        policies, spent = [self.base], [chain.device_seconds]
        while len(policies) <= rounds if budget is None else spent[-1] < budget:
            policies.append(chain.round(len(policies), policies[-1], repair_model))
            spent.append(chain.device_seconds)
        if budget is None and len(policies) == 1 and name != BASE:
            return VariantRun(name, seed, None, repair_model, 0, spent[-1])
        if budget is None or len(policies) == 1:
            return VariantRun(name, seed, chain.scores(policies[-1]), repair_model, len(policies) - 1, spent[-1])
        share = (budget - spent[-2]) / (spent[-1] - spent[-2])
        before, after = chain.scores(policies[-2]), chain.scores(policies[-1])
        return VariantRun(name, seed, after, repair_model, len(policies) - 2 + share, budget, before, share)


@dataclass
class Chain:
    """The steps of one variant with one seed.

    A step is a process of its own, in a folder named by all that its output depends on: variants share what they
    have in common, and what is there is not made again.
    """

    ablation: Ablation
    assignments: Sequence[str]
    seed: int
    device_seconds: float = 0.0
    """Of all but evaluations, those steps included that another variant has paid for."""
    _recipe: Recipe = field(init=False)

    def __post_init__(self) -> None:
        self._recipe = self.ablation.recipe_with(self.assignments)

    def repair_model(self, kind: str) -> Path | None:
        """The output that trained it; None for `none`."""
        if kind == "none":
            return None
        of = self.ablation
        sft = self.step("sft-repair", self.seed, repair_set=of.repair_set, model=of.base)
        if kind == "sft":
            return sft
        inputs = {"problems": of.train, "policy": of.base, "repair_model": sft, "repair_set": of.repair_set}
        return self.step("rl-repair", self.seed, **inputs)

    def round(self, number: int, policy: Path, repair_model: Path | None) -> Path:
        """Rollouts of the policy, their masks, training on them: the next policy."""
        seed, problems = self.seed * 1000 + number, self.ablation.train
        rollouts = self.step("rollout", seed, problems=problems, policy=policy)
        inputs = {"rollouts": rollouts, "problems": problems, "repair_model": repair_model, "policy": policy}
        groups = self.step("build-masks", seed, **inputs)
        return self.step("train-policy", seed, groups=groups, problems=problems, policy=policy)

    def scores(self, policy: Path) -> Path:
        """How good a policy is on the test problems."""
        return self.step("evaluate", self.seed, problems=self.ablation.test, model=policy)

    def step(self, name: str, seed: int, **inputs: Path | None) -> Path:
        """The step's folder, complete; an input that is None is one that it does without.

        Raises:
            StepError: its command failed.
        """
        of = self.ablation
        stage = STAGES[name](self._recipe.model_copy(update={"seed": seed}), **inputs)
        folder = of.out / STEPS / f"{name}-{_digest(planned(stage).record())}"
        if not (folder / MANIFEST).is_file():
            self._run(name, seed, folder, {key: path for key, path in inputs.items() if path is not None})
        if name != "evaluate":
            self.device_seconds += training_cost(read_manifest(folder))
        return folder

    def _run(self, name: str, seed: int, folder: Path, inputs: Mapping[str, Path]) -> None:
        of = self.ablation
        command = [*(of.train_launch if name in TRAINING else of.launch), name]
        command += ["--recipe", of.recipe, "--seed", str(seed), "--out", str(folder)]
        command += [word for assignment in (*of.assignments, *self.assignments) for word in ("--set", assignment)]
        command += [word for option, path in inputs.items() for word in (f"--{option.replace('_', '-')}", str(path))]
        log = of.out / LOGS / f"{folder.name}.log"
        with writing(log):
            output = log.open("ab")
        with output:
            status = _status(command, output)
        if status in STOPPED:
            raise Stopped(f"{of.out}: stopped in {name}, what was done is saved; give the same command again", status)
        if status:
            raise StepError(f"{name} ended with exit status {status}; {log} tells why")


def _status(command: Sequence[str], output: IO[bytes]) -> int:
    """The exit status of a command, which is asked to stop when this process is."""
    requests = Requests()
    with requests.heard(), subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        while process.poll() is None and requests.to_stop() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
        if process.poll() is None:
            process.terminate()
    stop = requests.to_stop()
    return process.returncode if stop is None else stop[1]


def _spent_by(run: VariantRun) -> float:
    if run.error is not None:
        raise StepError(f"{run.variant} failed, whose device-seconds this variant is to match")
    return run.device_seconds


def _digest(record: Mapping[str, Any]) -> str:
    """Of a plan, wherever its inputs lie."""
    contents = {name: entry["sha256"] for name, entry in record["inputs"].items()}
    return hashlib.sha256(json.dumps({**record, "inputs": contents}, sort_keys=True).encode()).hexdigest()[:16]
