"""A df command in a process that keeps a record of what it does to its output folder, and dies at one entry of it.

What it computes that costs is written down too: what it generates, scores and audits.

What is recorded is whatever can leave the folder different: files opened to be written, folders made, renames and
removals. A rename can be the end before it and right after it. Where it gives a file that was being written its name,
`finish` in the record, there is a third moment: with the file cut in half, as where the end came in the midst of it.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from df_cli.main import main
from stages.artifacts.writing import PARTIAL
from stages.audit.auditor import RulesAuditor
from stages.engines.transformers_engine import TransformersEngine
from stages.reward.rewards import MathReward

WRITING = os.O_WRONLY | os.O_RDWR
MOMENTS = {"finish": ("torn", "before", "after"), "rename": ("before", "after")}

COSTLY = (
    (TransformersEngine, "generate"),
    (TransformersEngine, "score"),
    (MathReward, "score_many"),
    (RulesAuditor, "audit"),
)


class Point(NamedTuple):
    """Where a process dies: the number of the entry, and the moment, `before` of whatever is no rename."""

    entry: int
    moment: str


class Record:
    """Numbers the changes of a folder, writes them down in the file `name`.record, and ends the process at one of them.

    A signal other than SIGKILL asks the process to end, or for whatever else it stands for.

    `name`.work has the costly work, each piece with the number of changes before it.
    """

    def __init__(self, folder: Path, name: Path, death: Point | None, number: int = signal.SIGKILL) -> None:
        self.folder = str(folder)
        self.log, self.work = (
            os.open(name.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for suffix in (".record", ".work")
        )
        self.death = death
        self.number = number
        self.entries = 0

    def begin(self) -> None:
        sys.addaudithook(self.hear)
        self.replace = os.replace
        os.replace = self.rename
        for owner, name in COSTLY:
            setattr(owner, name, self.recorded(getattr(owner, name)))

    def recorded(self, method: Callable) -> Callable:
        """The method, which first writes down what it is given to work on, unless that is nothing."""

        @wraps(method)
        def work(worker, items: Sequence, *arguments, **options):
            if items:
                entry = f"{self.entries} {method.__qualname__} {digest([items, arguments, options])}\n"
                os.write(self.work, entry.encode())
            return method(worker, items, *arguments, **options)

        return work

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
            os.kill(os.getpid(), self.number)


def digest(value: object) -> str:
    """What tells a piece of work from others, pixels and seeds included."""
    return hashlib.sha256(json.dumps(value, default=plain).encode()).hexdigest()


def plain(value: object) -> object:
    if isinstance(value, Image.Image):
        return [value.size, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Sequence):
        return list(value)
    return {field.name: getattr(value, field.name) for field in fields(value)}


def run(arguments: list[str], folder: Path, death: Point | None, number: int, waits: bool) -> None:
    """Run `df ARGUMENTS`, which writes `folder`; sends itself the signal `number` at `death`, and exits as df does.

    `waits` tells that of the reward, as if a server gave it.
    """
    MathReward.waits = waits
    with folder.with_suffix(".output").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    Record(folder, folder, death, number).begin()
    sys.argv = ["df", *arguments]
    main()
