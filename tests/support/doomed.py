"""A df command in a process that keeps a record of what it does to its output folder, and dies at one entry of it.

What it computes that costs is written down too: what it generates, scores and audits.

What is recorded is whatever can leave the folder different: files opened to be written, folders made, renames and
removals. A rename can be the end before it and right after it. Where it gives a file that was being written its name,
`finish` in the record, there is a third moment: with the file cut in half, as where the end came in the midst of it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from functools import wraps
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from df_cli.main import main
from stages.artifacts.step import CHECKPOINTS, PENDING, PROGRESS
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
    """Where a process dies: the entry, and the moment, `before` of whatever is no rename."""

    entry: int | str
    """Its number, or its line in the record, of which the first counts; `*` stands for anything there."""
    moment: str

    def meets(self, entry: int, line: str, moment: str) -> bool:
        named = fnmatch(line, self.entry) if isinstance(self.entry, str) else entry == self.entry
        return named and moment == self.moment


@dataclass(frozen=True)
class Trace:
    """What a command did."""

    record: list[str]
    """To its folder, in order."""
    work: list[tuple[int, str]]
    """Each piece of costly work, and how many entries of the record came before."""

    @classmethod
    def of(cls, out: Path) -> Trace:
        pieces = [line.split(" ", 1) for line in out.with_suffix(".work").read_text().splitlines()]
        return cls(out.with_suffix(".record").read_text().splitlines(), [(int(n), piece) for n, piece in pieces])

    def notes(self) -> Iterator[tuple[int, list[str]]]:
        """Entries at which the progress was noted, each with the shards or the checkpoint that were finished since."""
        finished: list[str] = []
        for entry, line in enumerate(self.record):
            event, _, name = line.partition(" ")
            if line == f"finish {PROGRESS}":
                yield entry, finished
                finished = []
            elif (event == "finish" and name.endswith(PENDING)) or re.fullmatch(rf"os.mkdir {CHECKPOINTS}/\d+", line):
                finished.append(name.removesuffix(PENDING))


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
            self.note(self.line(event, path))

    def rename(self, source, target) -> None:
        if not os.fsdecode(target).startswith(self.folder):
            return self.replace(source, target)
        is_new = os.fsdecode(source).endswith(PARTIAL)
        entry, line = self.entries, self.line("finish" if is_new else "rename", target)
        if is_new and self.death is not None and self.death.meets(entry, line, "torn"):
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.note(line)
        self.replace(source, target)
        return self.end_at(entry, line, "after")

    def line(self, event: str, path) -> str:
        return f"{event} {os.path.relpath(path, self.folder)}"

    def note(self, line: str) -> None:
        entry, self.entries = self.entries, self.entries + 1
        os.write(self.log, f"{line}\n".encode())
        self.end_at(entry, line, "before")

    def end_at(self, entry: int, line: str, moment: str) -> None:
        if self.death is not None and self.death.meets(entry, line, moment):
            self.death = None
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


def last_line(out: Path) -> str:
    """What the last process said at its end."""
    return out.with_suffix(".output").read_text().splitlines()[-1]


def finished(process: multiprocessing.process.BaseProcess) -> int:
    """The exit code of a process that is not yet started, at its end."""
    process.start()
    process.join()
    return process.exitcode


def finished_late(process: multiprocessing.process.BaseProcess, out: Path) -> int:
    """The exit code of a process of `run`, not yet started, that stands still for a second once it has begun `out`."""
    began = out.with_suffix(".record")
    began.unlink(missing_ok=True)
    process.start()
    while not (began.is_file() and began.stat().st_size):
        assert process.is_alive(), f"{began} never came"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    return process.exitcode
