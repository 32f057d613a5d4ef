"""The system's disk-free command, which ours shadows inside an activated environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path


def meant_for_system(arguments: Sequence[str], commands: Collection[str], options: Collection[str]) -> bool:
    """Whether `df ARGUMENTS` is the disk-free command: an option that is not ours, or an existing path.

    A command's name always wins, whatever files lie about.
    """
    if not arguments or arguments[0] in commands:
        return False
    first = arguments[0]
    if first.startswith("-"):
        return first.partition("=")[0] not in options
    return Path(first).exists()


def run_system_df(arguments: Sequence[str]) -> None:
    """Replace this process by the next `df` on PATH; exit with 127 where there is none."""
    own = Path(sys.argv[0]).resolve()
    for folder in os.get_exec_path():
        found = shutil.which("df", path=folder)
        if found is not None and Path(found).resolve() != own:
            os.execv(found, ["df", *arguments])
    sys.stderr.write("df: no disk-free command on PATH; the commands of Difference Feedback: df --help\n")
    sys.exit(127)
