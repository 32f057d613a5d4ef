"""What `make all` has to do: `python -m df_cli.standing` reads commands, one a line, in the order that they run.

It prints the output folder of each that is to run: its output is not there, not complete or not up to date, or it reads
the output of another that is to run. `!` and a folder is one whose output would be overwritten, which is told.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from df_cli.main import COMMANDS
from df_cli.stage_command import Asked
from stages.artifacts.digests import write_nothing
from stages.artifacts.up_to_date import Standing
from stages.errors import ArtifactError, DifferenceFeedbackError
from stages.run_folder import is_summarized
from stages.untrusted.printable import told_lines


def parser() -> Any:
    """The stages' commands, which give what they are asked for: to be called with arguments and
    `standalone_mode=False`."""
    app = typer.Typer()
    for name, command in COMMANDS.items():
        if hasattr(command, "asked"):
            app.command(name)(command.asked)
    return typer.main.get_command(app)


def to_do(lines: Iterable[str]) -> Iterator[str]:
    """The folders, as above.

    Raises:
        DifferenceFeedbackError: what is wrong with a command's recipe.
    """
    commands, waiting = parser(), list[Path]()
    for line in lines:
        name, *arguments = shlex.split(line)
        if name == "summarize":
            out, _, rounds = arguments
            if waiting or not _is_summarized(Path(out), int(rounds)):
                yield out
            continue
        asked: Asked = commands([name, *arguments], standalone_mode=False)
        remade = {name for name, path in asked.paths.items() if any(_lies_in(path, out) for out in waiting)}
        complete, changed = _standing(asked, remade)
        if changed:
            _tell(changed)
        if changed or remade or not complete:
            waiting.append(asked.out)
            yield f"{'!' if changed else ''}{asked.out}"


def _standing(asked: Asked, remade: Collection[str]) -> tuple[bool, str]:
    """Whether the output is up to date, and why it would be overwritten; of inputs that are `remade` first, nobody
    knows yet."""
    try:
        standing: Standing = asked.standing()
    except ArtifactError as error:
        return False, str(error)
    known = [name for name in standing.changed if name.removeprefix("inputs.") not in remade]
    changed = f"{asked.out}: made with other {', '.join(known)}" if known else ""
    return standing.manifest is not None, changed


def _is_summarized(run: Path, rounds: int) -> bool:
    try:
        return is_summarized(run, rounds)
    except ArtifactError:
        return False


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _tell(text: str) -> None:
    sys.stderr.write(f"{told_lines(text)}\n")


def main() -> None:
    write_nothing()  # `make -n` leaves a run as it is
    try:
        for folder in to_do(line for line in sys.stdin if line.strip()):
            print(folder)
    except DifferenceFeedbackError as error:
        _tell(f"error: {error}")
        print("refused")


if __name__ == "__main__":
    main()
