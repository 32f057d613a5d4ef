"""A pipeline step as the commands see it: it can say what it will do, and do it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from stages.artifacts.integrity import check_input
from stages.artifacts.ledger import CostLedger, cpu_seconds
from stages.artifacts.lock import lock_output
from stages.artifacts.plan import Input, Plan, path_of, reads_of
from stages.artifacts.step import Step
from stages.runtime import processes
from stages.runtime.interruption import Requests


class Stage(Protocol):
    """One step with its inputs and recipe."""

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        """What it reads, by name."""
        ...

    def plan(self) -> Plan:
        """Check inputs and recipe before any compute; say what the output depends on. Call `planned` instead."""
        ...

    def run(self, step: Step) -> None:
        """Do the work and finish the step."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What came of a command."""

    out: Path
    plan: dict[str, Any]
    manifest: dict[str, Any] | None
    """None after a dry run."""
    ran: bool
    """False where the output was complete already."""


def execute(
    stage: Stage,
    out: Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    requests: Requests | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Outcome:
    """Plan a stage and run it unless its output is complete; a dry run touches nothing.

    `origin` is the whole recipe, for the plan to keep. Signals are heeded as `requests` says, and act at once where
    there are none.

    Raises:
        DifferenceFeedbackError: whatever is wrong with inputs, recipe or output folder.
        Stopped: the step was asked to stop before its end.
    """
    with ExitStack() as held:
        if requests is not None:
            held.enter_context(requests.heard())
        plan = replace(planned(stage), origin=origin or {})
        if dry_run:
            return Outcome(out, plan.record(), None, ran=False)
        step = processes.on_main(lambda: _open(out, plan, overwrite, held))
        if step.manifest is not None:
            return Outcome(out, step.plan, step.manifest, ran=False)
        if requests is not None:
            step.requests = requests
        stage.run(step)
        processes.wait()
    return Outcome(out, step.plan, step.manifest, ran=True)


def planned(stage: Stage) -> Plan:
    """Compare the stage's inputs with their manifests, then let the stage plan.

    The order matters: `Stage.plan` opens its inputs, and a reader may hang on a damaged file.

    Raises:
        DifferenceFeedbackError: an input is damaged, or the stage refuses inputs or recipe.
    """

    def check() -> None:
        for given in stage.inputs.values():
            check_input(path_of(given), reads_of(given))

    processes.on_main(check)
    return stage.plan()


def _open(out: Path, plan: Plan, overwrite: bool, held: ExitStack) -> Step:
    """The step, with its folder locked while `held` is open; a complete one, which is only read, is not locked."""
    plan.record()  # what is wrong with the inputs is told before the folder is made
    finished = None if overwrite else Step.finished(out, plan)
    if finished is not None:
        return finished
    held.enter_context(lock_output(out))
    return Step.open(out, plan, overwrite=overwrite, ledger=_ledger())


def _ledger() -> CostLedger:
    """Of the GPUs that the step runs on, one a process or all that one process sees; without any, of the CPU."""
    gpus = torch.cuda.device_count()
    devices = processes.count() if processes.count() > 1 else max(1, gpus)
    return CostLedger(devices, time.perf_counter if gpus else cpu_seconds)
