"""The steps of a run as rules of make, for the Makefile: `python -m df_cli.make_rules RUN --rounds 3 ...` prints them.

    RUN/round-1/train-policy/manifest.json: again | ready RUN/round-1/build-masks/manifest.json
        $(DF_TRAIN) train-policy --groups RUN/round-1/build-masks ... $(TRAIN_OPTIONS)

`again`, which is never up to date, is a prerequisite of each step whose output is to be made though it may be there.
Without such a step the variable TO_DO is empty. CHANGED holds the folders whose output would be overwritten; standard
error says why. The module imports no torch.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from df_cli import options
from df_cli.main import app
from stages.artifacts.digests import write_nothing
from stages.artifacts.manifests import MANIFEST
from stages.artifacts.plan import Plan
from stages.artifacts.up_to_date import standing
from stages.chain import Chain, RepairModel
from stages.declared import DECLARED
from stages.errors import ArtifactError, DifferenceFeedbackError
from stages.recipe import Recipe, load_recipe
from stages.run_folder import PAGE_FILE, SUMMARY_FILE, is_summarized
from stages.untrusted.printable import told_lines


class Step(NamedTuple):
    """What `df command` is given to make a step."""

    command: str
    seed: int
    inputs: Mapping[str, Path | str | None]


class Steps:
    """The steps that a chain asks for, noted by output folder and not made."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.noted: dict[Path, Step] = {}

    def make(self, place: str, command: str, seed: int, /, **inputs: Path | str | None) -> Path:
        """Note a step, as a `stages.chain.Make`."""
        self.noted[self.run / place] = Step(command, seed, inputs)
        return self.run / place


def main(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    problems: options.Problems,
    policy: options.Policy,
    repair_set: Annotated[Path, typer.Option("--repair-set", help="Repair set.")],
    test: Annotated[Path, typer.Option("--test", help="Problems to evaluate on.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe file, or the name of a shipped recipe.")],
    assignments: options.Set = [],  # noqa: B006, typer copies it
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="How many; the repair model alone if not given.")
    ] = None,
) -> None:
    """Print the rules of `make all`, or of the repair model that `make loop` begins with."""
    write_nothing()  # `make -n` leaves a run as it is
    steps = Steps(run)
    chain = Chain(steps.make, problems, policy, repair_set, seed)
    try:
        print(*rules(steps, chain, load_recipe(recipe, assignments), test, rounds), sep="\n")
    except DifferenceFeedbackError as error:
        _tell(f"error: {error}")
        raise typer.Exit(1) from error


def rules(steps: Steps, chain: Chain, recipe: Recipe, test: Path, rounds: int | None) -> Iterator[str]:
    """Yield the rules of `make all`, or without `rounds` those of the repair model, which `make loop` begins with."""
    kind: RepairModel = "none" if recipe.masks.repairer == "sibling" else "rl"
    if rounds is None:
        yield f"REPAIR_MODEL := {chain.repair_model(kind, chain.base) or ''}"
    else:
        chain.run(kind, rounds, test)
    waiting = to_do(steps.noted, recipe)
    changed = [out for out, why in waiting.items() if why]
    for out in changed:
        _tell(waiting[out])
    yield f"CHANGED += {_listed(changed)}"
    yield from _step_rules(steps.noted, waiting)
    if rounds is not None:
        again = bool(waiting) or not _is_summarized(steps.run, rounds)
        yield f"TO_DO := {'all' if again else ''}"
        yield from _result_rules(steps.run, rounds, steps.noted, again=again)


def to_do(steps: Mapping[Path, Step], recipe: Recipe) -> dict[Path, str]:
    """Return the steps that are to run: their output folders, in order, with why what is there would be overwritten.

    The reason is empty where nothing would be. A step is to run if its output is missing, incomplete or out of date, or
    if it reads the output of a step that is to run.
    """
    waiting: dict[Path, str] = {}
    for out, (command, seed, inputs) in steps.items():
        remade = {name for name, given in inputs.items() if given in waiting}
        plan = DECLARED[command](recipe.model_copy(update={"seed": seed}), **inputs)
        complete, changed = _standing(out, plan, remade)
        if changed or remade or not complete:
            waiting[out] = changed
    return waiting


def _standing(out: Path, plan: Plan, remade: Collection[str]) -> tuple[bool, str]:
    """Tell whether the output is up to date, and why it would be overwritten.

    What the inputs named in `remade` will hold, nobody knows yet, so they give no reason.
    """
    try:
        found = standing(out, plan)
    except ArtifactError as error:
        return False, str(error)
    known = [name for name in found.changed if name.removeprefix("inputs.") not in remade]
    return found.manifest is not None, f"{out}: made with other {', '.join(known)}" if known else ""


def _is_summarized(run: Path, rounds: int) -> bool:
    try:
        return is_summarized(run, rounds)
    except ArtifactError:
        return False


def _step_rules(steps: Mapping[Path, Step], waiting: Collection[Path]) -> Iterator[str]:
    """Yield a rule for each step, which comes after the steps whose output it reads."""
    df: Any = typer.main.get_command(app)
    for out, step in steps.items():
        option = {parameter.name: parameter.opts[0] for parameter in df.commands[step.command].params}
        reads = [given for given in step.inputs.values() if isinstance(given, Path) and given in steps]
        yield _rule(out / MANIFEST, _manifests(reads), _command(out, step, option), again=out in waiting)


def _command(out: Path, step: Step, option: Mapping[str, str]) -> str:
    """Return the command line of a step; `option` gives the option of each parameter.

    A command that takes --save-every is one that trains.
    """
    given = {**step.inputs, "seed": step.seed, "out": out}
    words = [str(word) for name, value in given.items() if value is not None for word in (option[name], value)]
    launch, ending = ("$(DF_TRAIN)", "$(TRAIN_OPTIONS)") if "save_every" in option else ("$(DF)", "$(STEP_OPTIONS)")
    return f"{launch} {_shown(step.command, *words)} {ending}"


def _result_rules(run: Path, rounds: int, steps: Iterable[Path], *, again: bool) -> Iterator[str]:
    """Yield the rules of the summary, which comes after every step, of the page that shows it, and of `all`."""
    summary, page = run / SUMMARY_FILE, run / PAGE_FILE
    summarize = _shown("summarize", str(run), "--rounds", str(rounds))
    yield _rule(summary, _manifests(steps), f"$(BIN)/df {summarize}", again=again)
    yield _rule(page, [summary], f"$(BIN)/df {_shown('report', str(run))}", again=again)
    yield f"all: {page}"


def _manifests(steps: Iterable[Path]) -> list[Path]:
    return [out / MANIFEST for out in steps]


def _rule(target: Path, after: Iterable[Path], recipe: str, *, again: bool) -> str:
    return f"{target}: {'again ' if again else ''}| ready {_listed(after)}\n\t{recipe}"


def _listed(paths: Iterable[Path]) -> str:
    return " ".join(map(str, paths))


def _shown(*words: str) -> str:
    """Quote words for the shell, in a recipe of make."""
    return shlex.join(words).replace("$", "$$")


def _tell(text: str) -> None:
    sys.stderr.write(f"{told_lines(text)}\n")


if __name__ == "__main__":
    typer.run(main)
