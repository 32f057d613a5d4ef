"""Rounds of a policy in one process, with its models kept open: problems, policy, repair model -> a run's folders.

The steps are those of the commands, in the folders that `make all` uses: a run goes on with either.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stages.artifacts.columns import PROBLEMS, SUMMARY
from stages.artifacts.digests import DIGESTS
from stages.artifacts.lock import lock_output
from stages.artifacts.manifests import MANIFEST, read_manifest
from stages.artifacts.plan import Input, Plan
from stages.artifacts.stage import execute, planned
from stages.artifacts.store import count_rows, iterate_rows
from stages.artifacts.up_to_date import model_files, standing
from stages.artifacts.writing import link, writing
from stages.chain import RL_AGAIN, TRAIN, Chain, round_folder, validation_folder
from stages.checks.unseen import check_unseen
from stages.declared import WEIGHTS, table_input
from stages.engines.loading import with_engine
from stages.errors import ArtifactError
from stages.estimate import LoopEstimate, sizes_of, tables
from stages.evaluate import Evaluate
from stages.measures.accuracy import Measure, is_better
from stages.recipe import Recipe
from stages.runtime import processes
from stages.runtime.interruption import Requests, Stopped
from stages.s2_rl_repair import RlRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s4_build_masks.stage import check_options
from stages.s5_train_policy import TrainPolicy
from stages.training.quantized import check_quantized
from stages.training.resident import ResidentModels

GIB = 2**30
SECTIONS = (
    *("model", "engine", "prompt", "reward", "audit", "repair_rl", "rollout", "masks", "train", "trainer"),
    *("evaluate", "loop"),
)
"""Of the recipe, those that a loop reads."""
BEST = "best"
"""Link to the step that trained the best policy so far."""


class RoundResult(NamedTuple):
    """What one round came to."""

    number: int
    """0 is the policy that the loop starts from."""
    manifests: Mapping[str, Mapping[str, Any]]
    """Of its steps, by command."""
    accuracy: Mapping[str, Measure]
    """On the validation problems, by mode; empty where it was not validated."""
    is_best: bool
    seconds: float
    """Of the wall; a round that was there already took none."""


@dataclass(frozen=True)
class Loop:
    """`df loop`."""

    recipe: Recipe
    problems: Path
    policy: Path
    repair_model: Path | None
    out: Path
    rounds: int
    validation: Path | None = None
    """Problems that the best policy is known by."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe, for the plans of the steps."""
    requests: Requests = field(default_factory=Requests)
    when_checked: Callable[[], None] = lambda: None
    """Called before the first rollout, when everything was found right."""

    def plan(self) -> dict[str, Any]:
        """Check everything that `run` checks; say what it reads and what it takes. Nothing is written.

        Raises:
            DifferenceFeedbackError: whatever is wrong with inputs, recipe or output folder.
        """
        self._check()
        inputs = dict(Rollout(self.recipe, self.problems, self.policy).inputs)
        if self.repair_model is not None:
            inputs["repair_model"] = Input(self.repair_model, WEIGHTS)
        if self.validation is not None:
            inputs["validation"] = table_input(self.validation, PROBLEMS)
        recipe = with_engine(self.recipe).subset(*SECTIONS)
        plan = Plan("loop", recipe, self.recipe.seed, inputs, origin=self.origin)
        return plan.record() | {"rounds": self.rounds, "estimate": self.estimate().gib()}

    def estimate(self) -> LoopEstimate:
        """What it takes.

        Raises:
            ModelError: a model's configuration cannot be read.
        """
        sizes = sizes_of(self.recipe, {"policy": self.policy, "repair_model": self.repair_model})
        return LoopEstimate(self.recipe, sizes, self.rounds, self.validation is not None, self._tables())

    def _tables(self) -> dict[str, int]:
        """Bytes of all rounds' tables at most."""
        recipe, rollout = self.recipe, self.recipe.rollout
        problems = count_rows(self.problems, PROBLEMS)
        rollouts = rollout.samples_per_problem * min(problems, rollout.problems or problems)
        steps = [("rollout", problems, self.rounds), ("build-masks", rollouts, self.rounds)]
        if self.validation is not None:
            times = 1 + -(-self.rounds // recipe.loop.validate_every)
            steps.append(("evaluate", count_rows(self.validation, PROBLEMS), times))
        return {
            name: times * size for step, count, times in steps for name, size in tables(step, recipe, count).items()
        }

    def run(self) -> Iterator[RoundResult]:
        """Each round when it is done; what is there already is not made again.

        Weights of rounds that are neither among the last nor the best, and of repair models that others have replaced,
        are deleted on the way.

        Raises:
            DifferenceFeedbackError: whatever is wrong with inputs, recipe or output folder.
            Stopped: it was asked to stop.
        """
        with self.requests.heard(), ExitStack() as held:
            processes.on_main(lambda: held.enter_context(lock_output(self.out)))
            os.environ.setdefault(DIGESTS, str(self.out / "digests.jsonl"))  # each file is hashed once
            self._check()
            self.when_checked()
            yield from _Rounds(self).run()

    def _check(self) -> None:
        """Everything that can be wrong before the first rollout."""
        check_options(self.recipe, self.repair_model)
        check_quantized(self.recipe.trainer)
        planned(Rollout(self.recipe, self.problems, self.policy))
        if self.validation is not None:
            planned(Evaluate(self.recipe, self.validation, self.policy))
            processes.on_main(partial(check_unseen, self.problems, self.validation))
        processes.on_main(self._check_disk)

    def _check_disk(self) -> None:
        """Raises ArtifactError where there is no room for the weights; those of an earlier start count as room."""
        weights = [file for step in (TRAIN, RL_AGAIN) for file in self.out.glob(f"round-*/{step}/**/*.safetensors")]
        place = next(folder for folder in (self.out, *self.out.absolute().parents) if folder.is_dir())
        room = shutil.disk_usage(place).free + sum(file.stat().st_size for file in weights)
        need = sum(self.estimate().disk().values())
        if need > room:
            raise ArtifactError(
                f"{self.out}: weights and optimizer states take {need / GIB:.1f} GiB (loop.keep_rounds is "
                f"{self.recipe.loop.keep_rounds}, and the best), {room / GIB:.1f} GiB are free; lower it, or give "
                "another --out"
            )


class _Rounds:
    """A loop under way."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.section = loop.recipe.loop
        self.models = ResidentModels()
        self.repair_model = loop.repair_model
        self.chain = Chain(self._make, loop.problems, loop.policy, repair_set=None, seed=loop.recipe.seed)
        self.best: tuple[int, float] | None = None
        """Its round and its accuracy."""
        self.made: dict[str, Mapping[str, Any]] = {}
        """Manifests of the round under way, by command."""
        self.works = False
        """Whether a step of that round was not there."""
        self.kept: set[int] = set()
        """Rounds whose weights are there."""

    def run(self) -> Iterator[RoundResult]:
        policy, started, worse = self.loop.policy, time.perf_counter(), 0
        for number in range(self.loop.rounds + 1):
            self.made, self.works = {}, False
            if number:
                policy = self.chain.round(number, policy, self.repair_model, self.loop.policy).policy
            accuracy = self._validated(number, policy)
            is_best = self._note_best(number, accuracy)
            if accuracy:
                worse = 0 if is_best else worse + 1
            if number:
                self._make_room(number)
                self._train_repair_model(number, policy)
            if self.made:
                seconds = time.perf_counter() - started if self.works else 0.0
                yield RoundResult(number, self.made, accuracy, is_best, seconds)
            started = time.perf_counter()
            if self.section.patience is not None and worse >= self.section.patience:
                return

    def _make(self, place: str, command: str, seed: int, /, **inputs: Any) -> Path:
        """The step, made here where it is not there; as its own command would make it."""
        out, requests = self.loop.out / place, self.loop.requests
        if (stop := processes.on_main(requests.to_stop)) is not None:
            raise Stopped(self.loop.out, *stop)
        stage = self._stages()[command](self.loop.recipe.model_copy(update={"seed": seed}), **inputs)
        found = processes.on_main(lambda: standing(out, stage.declared))
        if found.changed:
            raise ArtifactError(
                f"{out}: made with other {', '.join(found.changed)}; a loop has one recipe and one set of inputs from "
                "first round to last: give those, or another --out"
            )
        if found.manifest is None:
            self.works = True
            execute(stage, out, requests=requests, origin=self.loop.origin)
        self.made[command] = read_manifest(out)
        return out

    def _stages(self) -> Mapping[str, Callable[..., Any]]:
        """By command; they keep their models."""

        def resident(stage: Callable[..., Any]) -> Callable[..., Any]:
            return lambda recipe, **inputs: stage(recipe, **inputs, models=self.models)

        kept = {
            "rollout": Rollout,
            "build-masks": BuildMasks,
            "train-policy": TrainPolicy,
            "evaluate": Evaluate,
            "rl-repair": RlRepair,
        }
        return {name: resident(stage) for name, stage in kept.items()}

    def _validated(self, number: int, policy: Path) -> dict[str, Measure]:
        """Accuracy by mode, where the round is to be validated: the first, every so many, the last.

        So is one that was the last of an earlier start, or one of every so many then.
        """
        problems, place = self.loop.validation, validation_folder(number)
        is_due = number % self.section.validate_every == 0 or number == self.loop.rounds
        if problems is None or not (is_due or (self.loop.out / place / MANIFEST).is_file()):
            return {}
        scores = self.chain.scores(place, policy, problems)
        found = {row["measure"]: Measure(**row) for row in iterate_rows(scores / "summary.parquet", SUMMARY)}
        return {mode: found[f"{mode} accuracy"] for mode in ("sampled", "greedy")}

    def _note_best(self, number: int, accuracy: Mapping[str, Measure]) -> bool:
        """Whether none before was as good; the link follows it."""
        if not accuracy:
            return False
        value = accuracy[self.section.best_by].value
        if self.best is not None and not is_better(value, self.best[1]):
            return False
        self.best = number, value
        if number:
            processes.on_main(lambda: link(self.loop.out / BEST, round_folder(Path(), number) / TRAIN))
        return True

    def _make_room(self, number: int) -> None:
        """Delete the weights that are kept no longer."""
        best = None if self.best is None else self.best[0]
        old = {n for n in self.kept if n <= number - self.section.keep_rounds and n != best}
        self.kept = self.kept - old | {number}
        processes.on_main(lambda: _delete_models(round_folder(self.loop.out, n) / TRAIN for n in old))

    def _train_repair_model(self, number: int, policy: Path) -> None:
        every = self.section.repair_rl_every
        if every is None or number % every or number == self.loop.rounds or self.repair_model is None:
            return
        old = self.repair_model
        place = str(round_folder(Path(), number) / RL_AGAIN)
        inputs = {"problems": self.loop.problems, "policy": policy, "repair_model": old}
        self.repair_model = self._make(place, "rl-repair", self.chain.round_seed(number), **inputs)
        self.models.replaced(old, self.repair_model, self.loop.recipe)
        if old != self.loop.repair_model:  # that one is the user's
            processes.on_main(lambda: _delete_models([old]))


def _delete_models(folders: Iterable[Path]) -> None:
    """Of complete steps, which they stay."""
    for folder in folders:
        with writing(folder):
            for name in model_files(read_manifest(folder)):
                (folder / name).unlink(missing_ok=True)
