"""Steps that runs share: each in a folder named by all that its output depends on, made once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stages.artifacts.columns import METRICS
from stages.artifacts.manifests import MANIFEST
from stages.artifacts.stage import execute
from stages.artifacts.writing import link, writing
from stages.errors import StepError
from stages.evaluate import Evaluate
from stages.recipe import Recipe
from stages.runtime.interruption import STOPPING, Requests, Stopped, by_signal
from stages.s1_sft_repair import SftRepair
from stages.s2_rl_repair import RlRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s5_train_policy import TrainPolicy

STAGES: Mapping[str, Callable[..., Any]] = {
    "sft-repair": SftRepair,
    "rl-repair": RlRepair,
    "rollout": Rollout,
    "build-masks": BuildMasks,
    "train-policy": TrainPolicy,
    "evaluate": Evaluate,
}
TRAINING = {"sft-repair", "rl-repair", "train-policy"}
STEPS, LOGS = "steps", "logs"
STOPPED = {exit_code: (name, exit_code) for name, exit_code in map(by_signal, STOPPING)}
"""What a step was asked to stop by that ended with this exit status."""
POLL_S = 0.5


@dataclass(frozen=True)
class Steps:
    """Where the steps of a study lie, and how one is made: in this process, or by a command."""

    out: Path
    recipe: str
    """Its name, as commands are given it."""
    launch: Sequence[str] | None
    """What the command of a step begins with; None makes it in this process."""
    train_launch: Sequence[str] | None
    """The same for the steps that train."""
    requests: Requests

    def make(
        self, place: Path, name: str, recipe: Recipe, assignments: Sequence[str], seed: int, **inputs: Path | str | None
    ) -> Path:
        """Make the step `name`, unless another run has made it, and return its folder; an input of None is not given.

        `place`, in the folder of the run that wants it, becomes a link to that folder.
        `assignments` are the `--set` assignments that turned the recipe's file into `recipe`. A step that is made by a
        command of its own reads the file again and needs them.

        Raises:
            StepError: the step's command failed.
            DifferenceFeedbackError: the step refuses its inputs or recipe.
            Stopped: the study was asked to stop.
        """
        stage = STAGES[name](recipe.model_copy(update={"seed": seed}), **inputs)
        folder = self.out / STEPS / f"{name}-{digest_of(stage.declared.record())}"
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        link(place, Path(os.path.relpath(folder, place.parent)))
        if (folder / MANIFEST).is_file():
            return folder
        if (stop := self.requests.to_stop()) is not None:
            raise Stopped(self.out, *stop)
        launch = self.train_launch if name in TRAINING else self.launch
        try:
            if launch is None:
                execute(stage, folder, requests=self.requests)
            else:
                self._command([*launch, name], assignments, seed, folder, inputs)
        except Stopped as stopped:
            raise Stopped(self.out, stopped.reason, stopped.exit_code) from stopped
        return folder

    def remove_rounds(self, run: Path) -> None:
        """Make room: of the rounds of a run that is recorded, only manifests and metrics stay, in its own folder."""
        for place in run.glob("round-*/*"):
            folder = place.resolve()
            with writing(folder):
                place.unlink()
                place.mkdir()
                for name in (MANIFEST, f"{METRICS.name}.parquet"):
                    if (folder / name).is_file():
                        shutil.copy2(folder / name, place)
                shutil.rmtree(folder)

    def _command(
        self,
        words: list[str],
        assignments: Sequence[str],
        seed: int,
        folder: Path,
        inputs: Mapping[str, Path | str | None],
    ) -> None:
        name = words[-1]
        words += ["--recipe", self.recipe, "--seed", str(seed), "--out", str(folder)]
        words += [word for assignment in assignments for word in ("--set", assignment)]
        given = {option: value for option, value in inputs.items() if value is not None}
        words += [word for option, value in given.items() for word in (f"--{option.replace('_', '-')}", str(value))]
        words += self._limits(name)
        log = self.out / LOGS / f"{folder.name}.log"
        with writing(log):
            log.parent.mkdir(exist_ok=True)
            output = log.open("ab")
        with output:
            status = self._status(words, output)
        stop = self.requests.to_stop() or STOPPED.get(status)
        if status and stop is not None:
            raise Stopped(folder, *stop)
        if status:
            raise StepError(f"{name} ended with exit status {status}; {log} tells why")

    def _limits(self, name: str) -> list[str]:
        """Options of a step's command: what is left of the time limit, and how often it saves if it trains."""
        left, every = self.requests.time_left_s, self.requests.save_every
        words = [] if left is None else ["--stop-after", f"{max(math.ceil(left), 1)}s"]
        return words + (["--save-every", str(every)] if every is not None and name in TRAINING else [])

    def _status(self, command: Sequence[str], output: IO[bytes]) -> int:
        """The exit status of a command, which gets a signal that asks this process to stop; it has the time limit."""
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
            while process.poll() is None and not self.requests.has_signal:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
            if process.poll() is None:
                process.terminate()
        return process.returncode


def digest_of(record: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name a step's folder: a hash of its plan, of its inputs' contents and not their paths."""
    contents = {name: entry["sha256"] for name, entry in record["inputs"].items()}
    return hashlib.sha256(json.dumps({**record, "inputs": contents}, sort_keys=True).encode()).hexdigest()[:16]
