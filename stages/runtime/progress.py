"""Progress of long work: a bar with rate and time left on a terminal, a line per interval elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from stages.runtime import processes

INTERVAL_S = 15.0


class Advance(Protocol):
    """Tells how much more is done, and in words what was measured last."""

    def __call__(self, amount: int, measured: str = "", /) -> None: ...


def untold(_amount: int, _measured: str = "") -> None:
    """An `Advance` that shows nothing."""


@contextmanager
def track(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Give a function that is called with how much more is done; `unit` names what is counted."""
    console = Console(stderr=True, quiet=not processes.is_main())
    if console.quiet:
        yield untold
    elif console.is_terminal:
        with _bar(console, unit) as progress:
            task = progress.add_task(label, total=total, rate="")
            started = time.monotonic()

            def advance(amount: int, measured: str = "") -> None:
                progress.measured = measured
                done = progress.tasks[0].completed + amount
                progress.update(task, advance=amount, rate=_pace(done / max(time.monotonic() - started, 1e-9), unit))

            yield advance
    else:
        yield _LineLog(label, total, unit).advance


def _pace(rate: float, unit: str) -> str:
    """Words for so many a second; none where nothing is done yet."""
    if rate <= 0:
        return "none yet"
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


class _Bar(Progress):
    """A bar, with what was measured last on a line of its own below."""

    measured = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.measured:
            yield Text(self.measured)


def _bar(console: Console, unit: str) -> _Bar:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
    return _Bar(*columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console)


class _LineLog:
    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self.started = self.reported = time.monotonic()

    def advance(self, amount: int, measured: str = "") -> None:
        before, self.done = self.done, self.done + amount
        now = time.monotonic()
        completed = before < self.total <= self.done
        if now - self.reported < INTERVAL_S and not completed:
            return
        self.reported = now
        rate = self.done / max(now - self.started, 1e-9)
        left = f", {max(self.total - self.done, 0) / rate:.0f} s left" if rate else ""
        line = f"{self.label}: {self.done}/{self.total} {self.unit}, {_pace(rate, self.unit)}{left}"
        print(f"{line}; {measured}" if measured else line, file=sys.stderr, flush=True)
