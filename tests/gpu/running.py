"""Parts of a measurement, run in a worker process that is ended when a part takes too long.

A worker runs one part after the other, since starting it takes as long as some of them. One that failed, or that keeps
memory of the GPU, is replaced: it leaves nothing behind.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import torch
from measured import Line, free_gib, free_memory

MARK = "measured: "

START_SECONDS = 120.0
"""That a worker may take to import what the parts need."""
KEPT_GIB = 1.0
"""Of the GPU, after a part, beyond which its worker is replaced."""


@dataclass(frozen=True)
class Part:
    """Some lines of the table."""

    lines: Callable[[], Iterable[Line]]
    seconds: float
    """That it may take."""
    gib: Callable[[], float] = lambda: 0.0
    """Memory of the GPU that it needs, by an estimate, in GiB."""


class Ended(NamedTuple):
    """A part that is over."""

    part: str
    seconds: float
    why: str
    """What kept it from being whole: `does not fit: ...`, `failed: ...`, `cut off: ...`, `not run: ...`; else empty."""

    @property
    def broken(self) -> bool:
        """A part that does not fit is none of the product's faults."""
        return bool(self.why) and not self.why.startswith("does not fit")

    def __str__(self) -> str:
        return f"-- {self.part}: {self.why or f'{self.seconds:.0f} s'}"


def work_through(parts: Mapping[str, Part]) -> None:
    """In a worker: run the parts, and print what `run` reads."""
    for name, part in parts.items():
        _tell(began=name)
        needs, has = part.gib(), free_gib()
        if needs > has:
            _tell(ended=f"does not fit: needs {needs:.1f} GiB of {has:.1f}")
            continue
        for line in part.lines():
            _tell(line=line.as_row())
        _tell(ended="")
        free_memory()
        if torch.cuda.memory_allocated() > KEPT_GIB * 2**30:
            return


def run(command: Sequence[str], parts: Mapping[str, Part], seconds: float) -> Iterator[Line | Ended]:
    """Each part's lines as they come, then its end; `command` and the names of parts start a worker on them.

    What has not begun after `seconds` is not run, and what is under way then is cut off.
    """
    left, until = list(parts), time.monotonic() + seconds
    while left and time.monotonic() < until:
        yield from _one_worker(command, parts, left, until)
    yield from (Ended(name, 0, "not run: no time was left") for name in left)


def _one_worker(
    command: Sequence[str], parts: Mapping[str, Part], left: list[str], until: float
) -> Iterator[Line | Ended]:
    """Take parts off the list as they end, until the worker does."""
    with _worker([*command, *left]) as worker:
        began = time.monotonic()
        worker.deadline = min(until, began + START_SECONDS)
        for message in worker.messages():
            if "began" in message:
                began = time.monotonic()
                worker.deadline = min(until, began + parts[left[0]].seconds)
            elif "line" in message:
                yield Line(**message["line"])
            else:
                yield Ended(left.pop(0), time.monotonic() - began, message["ended"])
                if not left:
                    return
        if why := worker.why_it_ended():
            yield Ended(left.pop(0), time.monotonic() - began, why)


class _Worker:
    deadline = 0.0
    """When it is cut off, in seconds of the monotonic clock."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self.process, self.errors = process, errors
        self.cut_off = False
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def messages(self) -> Iterator[dict[str, Any]]:
        """As they come, until the worker ends or is to be cut off."""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, self.deadline - time.monotonic()))
            except queue.Empty:
                self.cut_off = True
                return
            if line is None:
                return
            yield json.loads(line)

    def why_it_ended(self) -> str:
        """Empty where it asks for another one."""
        if self.cut_off:
            return "cut off: its time was over"
        if self.process.wait() == 0:
            return ""
        self.errors.seek(0)
        written = self.errors.read().strip()
        print(written, file=sys.stderr, flush=True)
        last = written.splitlines()[-1] if written else "nothing was told"
        return f"failed ({self.process.returncode}): {last[:160]}"

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith(MARK):
                self._lines.put(line.removeprefix(MARK))
        self._lines.put(None)


@contextmanager
def _worker(command: Sequence[str]) -> Iterator[_Worker]:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield _Worker(process, errors)
        finally:
            process.kill()
            process.wait()


def _tell(**message: Any) -> None:
    print(f"{MARK}{json.dumps(message)}", flush=True)
