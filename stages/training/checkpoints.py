"""What an interrupted training run goes on from: weights, optimizer, random numbers, place in the data, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from stages.artifacts.columns import METRICS
from stages.artifacts.manifests import MODEL
from stages.artifacts.step import Step
from stages.artifacts.store import iterate_rows, write_rows
from stages.errors import ModelError
from stages.runtime import processes
from stages.training.metrics import MetricsLog
from stages.training.trainer import Trainer

STATE = "state.json"
SAVE_EVERY = 100
"""Optimizer steps between two checkpoints, unless `--save-every` says otherwise."""


class Checkpoints:
    """Kept every so many optimizer steps or iterations, when SIGUSR1 asks for it, and before a stop.

    Opened where a step has a checkpoint, it puts the trainers and the log back as they were then: `done` says how many
    steps or iterations that was. `trainers` are by the name of their folder, the one of the step's own model first;
    `write_more` adds to a checkpoint what its stage reads back on its own.
    """

    def __init__(
        self,
        step: Step,
        trainers: Mapping[str, Trainer],
        log: MetricsLog,
        *,
        every: int,
        write_more: Callable[[Path], None] = lambda _folder: None,
    ) -> None:
        self.step = step
        self.trainers = trainers
        self.log = log
        self.every = step.requests.save_every or every
        self.write_more = write_more
        self.done = 0
        if step.checkpoint is not None:
            self._load(step.checkpoint)

    def advance(self) -> None:
        """One more step or iteration is done.

        Raises:
            Stopped: the run was asked to stop.
            ModelError: too many steps had no finite loss and gradient.
        """
        self.done += 1
        self._count_skipped()
        due = self.done % self.every == 0 or processes.on_main(self.step.requests.to_save)
        if due:
            self._save()
            self.step.pause()
        else:
            self.step.pause(self._save)

    def finish(self) -> None:
        """All steps are done.

        Raises:
            ModelError: none of them had a finite loss and gradient.
        """
        for name, one in self.trainers.items():
            if 0 < one.steps_skipped == one.steps_of_run:
                raise ModelError(
                    f"{self.step.out / name}: all {one.steps_skipped} optimizer steps were skipped, none had a finite "
                    "loss and gradient; set model.dtype=float32, or start from another checkpoint"
                )

    def _count_skipped(self) -> None:
        trainer = next(iter(self.trainers.values()))
        if skipped := sum(one.steps_skipped for one in self.trainers.values()):
            self.step.tally.counts["steps_skipped"] = skipped
        for one in self.trainers.values():
            if one.steps_skipped > one.section.max_skipped_steps:
                trainer.save_weights(self.step.out / MODEL)
                raise ModelError(
                    f"optimizer step {one.steps_done}: {one.steps_skipped} steps without a finite loss and gradient "
                    f"were skipped, max_skipped_steps is {one.section.max_skipped_steps}; lower the learning rate. "
                    f"The last good weights: {self.step.out / MODEL}"
                )

    def _save(self) -> None:
        with self.step.ledger.phase("save"):
            self.step.save_checkpoint(self._write)

    def _write(self, folder: Path) -> None:
        for name, trainer in self.trainers.items():
            if processes.is_main():
                (folder / name).mkdir()
            processes.wait()
            trainer.save_state(folder / name)
        if processes.is_main():
            write_rows(folder / f"{METRICS.name}.parquet", METRICS, self.log.rows)
            (folder / STATE).write_text(json.dumps({"done": self.done, "logged": self.log.ends}))
            self.write_more(folder)

    def _load(self, folder: Path) -> None:
        for name, trainer in self.trainers.items():
            trainer.load_state(folder / name)
        self._count_skipped()
        state = json.loads((folder / STATE).read_text())
        self.done = state["done"]
        self.log.replay(list(iterate_rows(folder / f"{METRICS.name}.parquet", METRICS)), state["logged"])
