"""The system's disk-free command, which ours shadows inside an activated environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

TRIED = "DF_TRIED"
"""Environment variable: the paths of `df` that this call has already been passed on to.

Each of them led back to this package, so none is tried twice.
"""


def meant_for_system(arguments: Sequence[str], commands: Collection[str], options: Collection[str]) -> bool:
    """Whether `df ARGUMENTS` is the disk-free command: an option that is not ours, or a path.

    A command's name always wins, whatever files lie about.
    """
    if not arguments or arguments[0] in commands:
        return False
    first = arguments[0]
    if first.startswith("-"):
        return first.partition("=")[0] not in options
    return os.sep in first or Path(first).exists()


def run_system_df(arguments: Sequence[str]) -> None:
    """Replace this process by the next `df` on PATH; exit with 127 where there is none."""
    tried = os.environ.get(TRIED, "").split(os.pathsep)
    found = _next_df(tried)
    if found is not None:
        os.environ[TRIED] = os.pathsep.join([*tried, str(Path(found).resolve())])
        os.execv(found, ["df", *arguments])
    sys.stderr.write("df: no disk-free command on PATH; the commands of Difference Feedback: df --help\n")
    sys.exit(127)


def _next_df(tried: Collection[str]) -> str | None:
    """The `df` after this one, each counted once: two installs of this package must not call each other for ever, nor
    may `python -m df_cli` and a script that runs it."""
    by_target: dict[Path, str] = {}
    for folder in os.get_exec_path():
        found = shutil.which("df", path=folder)
        if found is not None:
            by_target.setdefault(Path(found).resolve(), found)
    targets = list(by_target)
    own = Path(sys.argv[0]).resolve()
    later = targets[targets.index(own) + 1 :] if own in by_target else targets
    return next((by_target[target] for target in later if str(target) not in tried), None)
