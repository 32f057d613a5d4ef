"""What is asked of a step from outside while it runs: to stop (SIGTERM, SIGINT, a time limit), to save (SIGUSR1)."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

TIME_LIMIT_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: try again."""
STOPPING = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The command that writes `out` was asked to stop, and has saved what it did; `reason` is what asked it."""

    def __init__(self, out: Path, reason: str, exit_code: int) -> None:
        super().__init__(f"{out}: stopped ({reason}), what was done is saved; give the same command again to go on")
        self.reason = reason
        self.exit_code = exit_code


def by_signal(number: signal.Signals) -> tuple[str, int]:
    """A signal's name, and the exit code of a command that it has stopped."""
    return number.name, 128 + number


class Requests:
    """Noted when they come, heeded where the step can go on later: behind a shard or an optimizer step.

    The second signal of a kind acts at once, as it does on any program.
    """

    def __init__(self, *, stop_after_s: float | None = None, save_every: int | None = None) -> None:
        self.save_every = save_every
        """Optimizer steps, or iterations, between two checkpoints; the stage's own if None."""
        self._stop_after_s = stop_after_s
        self._deadline = None if stop_after_s is None else time.monotonic() + stop_after_s
        self._signal: signal.Signals | None = None
        self._save = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, signals are noted. Of the main thread alone, as signal handlers are."""
        before = {number: signal.signal(number, self._note_stop) for number in STOPPING}
        before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note_save)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def to_stop(self) -> tuple[str, int] | None:
        """What asks to stop, and the exit code that tells of it: 128 and the signal's number, or `EX_TEMPFAIL`."""
        if self._signal is not None:
            return by_signal(self._signal)
        if self.time_left_s == 0:
            return f"--stop-after, {self._stop_after_s:.0f} s", TIME_LIMIT_EXIT_CODE
        return None

    @property
    def time_left_s(self) -> float | None:
        """Seconds to the time limit, 0 once it has passed; None without one."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    @property
    def has_signal(self) -> bool:
        """Whether a signal has asked to stop."""
        return self._signal is not None

    def to_save(self) -> bool:
        """Whether SIGUSR1 has come since this was last asked."""
        asked, self._save = self._save, False
        return asked

    def _note_stop(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def _note_save(self, _number: int, _frame: FrameType | None) -> None:
        self._save = True
