"""`df loop`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from df_cli import options
from df_cli.report import print_line, print_outcome
from df_cli.stage_command import asked
from stages.runtime.interruption import Requests

if TYPE_CHECKING:
    from stages.estimate import LoopEstimate
    from stages.loop import RoundResult


def loop(
    problems: options.Problems,
    policy: options.Policy,
    rounds: Annotated[int, typer.Option(min=1, help="How many, those included that are there already.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run, as `make all` has one.")],
    repair_model: options.OptionalRepairModel = None,
    validation: Annotated[
        Path | None, typer.Option(help="Problems that are not trained on, by which the best policy is known.")
    ] = None,
    recipe: options.Recipe = None,
    assignments: options.Set = [],  # noqa: B006, typer copies it
    seed: options.Seed = None,
    stop_after: options.StopAfter = None,
    save_every: options.SaveEvery = None,
    engine: options.Engine = None,
    dry_run: options.DryRun = False,
) -> None:
    """Roll out, build masks and train, round after round, in one process that keeps its models open."""
    given = {"problems": problems, "policy": policy, "repair_model": repair_model, "validation": validation}
    wanted = asked("loop", given, out=out, recipe=recipe, assignments=assignments, seed=seed, engine=engine)
    from stages.artifacts.stage import Outcome
    from stages.loop import BEST, Loop
    from stages.runtime import processes

    def begin() -> None:
        if processes.is_main():
            print_line(_takes(made.estimate()))
            if validation is None:
                print_line(f"no --validation problems: no accuracy is measured, and no {BEST}/ kept")

    made = Loop(
        wanted.recipe,
        problems,
        policy,
        repair_model,
        out,
        rounds,
        validation,
        origin=wanted.origin.as_record(),
        requests=Requests(stop_after_s=stop_after, save_every=save_every),
        when_checked=begin,
    )
    if dry_run:
        outcome = Outcome(out, made.plan(), None, ran=False)
        if processes.is_main():
            print_outcome(outcome)
        return
    best = None
    for result in made.run():
        best = result if result.is_best else best
        if processes.is_main():
            print_line(_line(result, rounds))
    if result.number < rounds and processes.is_main():
        print_line(f"ended early: {made.recipe.loop.patience} validations one after the other found no better policy")
    if best is not None and processes.is_main():
        where = str(out / BEST) if best.number else str(policy)
        print_line(f"best: round {best.number}, {_accuracy(best)}; {where}")


def _takes(estimate: LoopEstimate) -> str:
    """What the loop holds and writes, in a line; `--dry-run` has the parts."""
    told, disk = estimate.gib(), sum(estimate.disk().values()) / 2**30
    return (
        f"takes at most {told['device_gib']['at_most']:.2f} GiB of each device (in {told['device_gib']['during']}), "
        f"{max(told['host_gib'].values()):.2f} GiB of the host, {disk:.2f} GiB of disk (loop.keep_rounds is "
        f"{estimate.recipe.loop.keep_rounds})"
    )


def _line(result: RoundResult, rounds: int) -> str:
    """One round: how good the policy is now, what the round had to learn from, and what it took."""
    parts = [f"round {result.number}/{rounds}", *([_accuracy(result)] if result.accuracy else [])]
    if "rollout" in result.manifests:
        rollout, masks = result.manifests["rollout"], result.manifests["build-masks"]
        asked_for = masks["counts"].get("repair_triggered", 0)
        repaired = masks["counts"].get("errors_repaired", 0)
        parts.append(f"{rollout['counts']['correct']} of {rollout['rows_out']} rollouts right")
        parts.append(f"p (eq. 29) {asked_for / rollout['rows_out']:.3f}")
        parts.append(f"{repaired} of {asked_for} errors repaired")
    took = {name: sum(manifest["device_seconds"].values()) for name, manifest in result.manifests.items()}
    parts.append("device-seconds " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in took.items()))
    left = (rounds - result.number) * result.seconds
    parts.append(f"{result.seconds:.1f} s" if result.seconds else "made before")
    if left:
        parts[-1] += f", about {left:.0f} s left"
    return "; ".join(parts) + (" (best so far)" if result.is_best else "")


def _accuracy(result: RoundResult) -> str:
    return ", ".join(
        f"{mode} {m.value:.3f}" + ("" if m.low is None else f" [{m.low:.3f}, {m.high:.3f}]")
        for mode, m in result.accuracy.items()
    )
