"""A df command in a process that keeps a record of what it does to its output folder, and dies at one entry of it.

What is recorded is whatever can leave the folder different: files opened to be written, folders made, renames and
removals. A rename can be the end before it and right after it. Where it gives a file that was being written its name,
`finish` in the record, there is a third moment: with the file cut in half, as where the end came in the midst of it.
"""

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

# All that the commands import, once, in the server that they are forked from.
import stages.ablate  # noqa: F401
from df_cli.main import main
from stages.artifacts.writing import PARTIAL

WRITING = os.O_WRONLY | os.O_RDWR
MOMENTS = {"finish": ("torn", "before", "after"), "rename": ("before", "after")}


class Point(NamedTuple):
    """Where a process dies: the number of the entry, and the moment, `before` of whatever is no rename."""

    entry: int
    moment: str


class Record:
    """Numbers the changes of a folder, writes them down in a file beside it, and ends the process at one of them."""

    def __init__(self, folder: Path, file: Path, death: Point | None) -> None:
        self.folder = str(folder)
        self.log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.death = death
        self.entries = 0

    def begin(self) -> None:
        sys.addaudithook(self.hear)
        self.replace = os.replace
        os.replace = self.rename

    def hear(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and bool(flags & WRITING)
        else:
            changes = event in ("os.mkdir", "os.remove", "shutil.rmtree")
            path = arguments[0] if changes else None
        if changes and isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self.folder):
            self.note(event, path)

    def rename(self, source, target) -> None:
        if not os.fsdecode(target).startswith(self.folder):
            return self.replace(source, target)
        is_new = os.fsdecode(source).endswith(PARTIAL)
        if is_new and Point(self.entries, "torn") == self.death:
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        entry = self.note("finish" if is_new else "rename", target)
        self.replace(source, target)
        return self.end_at(Point(entry, "after"))

    def note(self, event: str, path) -> int:
        entry, self.entries = self.entries, self.entries + 1
        os.write(self.log, f"{event} {os.path.relpath(path, self.folder)}\n".encode())
        self.end_at(Point(entry, "before"))
        return entry

    def end_at(self, point: Point) -> None:
        if point == self.death:
            os.kill(os.getpid(), signal.SIGKILL)


def run(arguments: list[str], folder: Path, record: Path, death: Point | None, output: Path) -> None:
    """Run `df ARGUMENTS`, which writes `folder`; dies at `death`, else exits as df does."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    Record(folder, record, death).begin()
    sys.argv = ["df", *arguments]
    main()
