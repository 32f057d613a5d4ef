"""Training metrics while they come, and samples: JSON lines, TensorBoard, Weights & Biases, trackio.

The training steps of a run, in the folders of `make all` or of a loop, are one run there: their metrics have the
command's name before their own, and optimizer steps are counted through. Any other training step is a run of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from stages.artifacts.writing import write_text, writing
from stages.chain import round_number
from stages.errors import RecipeError
from stages.runtime import processes
from stages.sections import TrackingSection
from stages.training.sample_table import Cell
from stages.training.tracked_run import NO_RUN, NOTE, TrackedRun, known, tracked_run

ELSEWHERE = ("wandb", "trackio")
"""Trackers that keep a run outside its folder."""


class JsonLinesTracker(GeneralTracker):  # type: ignore[misc]
    """One line a log: `{"step": 3, "loss": 0.5}`, behind the file's lines up to the step `before`; later ones go."""

    name = "jsonl"
    requires_logging_directory = True

    def __init__(self, path: Path, before: int) -> None:
        super().__init__()
        self._path = path
        self._before = before
        self._file: TextIO

    @property
    def tracker(self) -> TextIO:
        return self._file

    def start(self) -> None:
        write_text(self._path, "".join(_lines_until(self._path, self._before)))
        self._file = self._path.open("a", encoding="utf-8")

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        print(json.dumps({"step": step} | values), file=self._file, flush=True)

    def finish(self) -> None:
        self._file.close()


class _TensorBoard(TensorBoardTracker):  # type: ignore[misc]
    """Keeps the recipe in the run itself: accelerate's own makes another run of it."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, {}):
            self.writer.file_writer.add_summary(summary)


class _Trackio(TrackioTracker):  # type: ignore[misc]
    """Finishes a run once: accelerate's own leaves trackio to do it again, on stdout, when Python ends."""

    def finish(self) -> None:
        import trackio

        trackio.finish()


class Trackers:
    """The trackers of one training step; those elsewhere know its run up to the optimizer step `told`.

    `shows_samples` tells whether they are to have a table of samples of this step.
    """

    def __init__(
        self,
        trackers: Sequence[GeneralTracker] = (),
        run: TrackedRun = NO_RUN,
        told: int = 0,
        *,
        shows_samples: bool = False,
    ) -> None:
        self.shows_samples = shows_samples
        self._trackers = trackers
        self._run = run
        self._told = told
        self._first: int | None = None
        self.last = told
        """Last optimizer step of the run that was logged."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log what optimizer step `step`, as the trainer counts, has measured."""
        self._first = step if self._first is None else self._first
        number = self._run.before + 1 + step - self._first if self._run.step else step
        values = {self._run.prefix + name: value for name, value in metrics.items()}
        self.last = max(self.last, number)
        with writing(self._run.folder):
            for tracker in self._trackers:
                if number > self._told or tracker.name not in ELSEWHERE:
                    tracker.log(values, step=number)

    def show_samples(self, rows: Sequence[Mapping[str, Cell]]) -> None:
        """Give trackers elsewhere a table, rows by column, at the last optimizer step, if that is news to them."""
        if not rows or self.last <= self._told:
            return
        with writing(self._run.folder):
            for tracker in self._trackers:
                if tracker.name in ELSEWHERE:
                    tracker.log({f"{self._run.prefix}samples": _table(tracker.name, rows)}, step=self.last)


def _table(tracker: str, rows: Sequence[Mapping[str, Cell]]) -> Any:
    """wandb and trackio call their tables and pictures alike."""
    package = importlib.import_module(tracker)
    data = [[package.Image(cell) if isinstance(cell, Image.Image) else cell for cell in row.values()] for row in rows]
    return package.Table(columns=list(rows[0]), data=data)


def check_trackers(section: TrackingSection) -> None:
    """Refuse trackers that cannot be had, before any compute.

    Raises:
        RecipeError: a package is not installed.
    """
    for name in section.trackers:
        if name != "jsonl" and not _installed(name):
            raise RecipeError(f"tracking.trackers: {name} is not installed; pip install '.[{name}]'")


@contextmanager
def open_trackers(section: TrackingSection, out: Path, config: Mapping[str, Any]) -> Iterator[Trackers]:
    """Run the section's trackers on the main process, none on the others; `config` is what they show of the recipe.

    `out`, the step's folder, tells the run. Files of an earlier start of the step are replaced. wandb and trackio go on
    where they were, or begin a new run where the step is made again from another plan.

    Raises:
        RecipeError: wandb does not start.
        DataError: as `tracked_run`.
        ArtifactError: as `writing`.
    """
    if not section.trackers or not processes.is_main():
        yield Trackers()
        return
    names = dict.fromkeys(section.trackers)
    run = tracked_run(out)
    elsewhere = known(run, out)
    with writing(run.folder), redirect_stdout(sys.stderr):  # trackio greets on stdout
        _clear(run)
        run.folder.mkdir(parents=True, exist_ok=True)
        if not names.keys().isdisjoint(ELSEWHERE):
            elsewhere.write(run)
        trackers = [_start(name, section, run, elsewhere.id) for name in names]
        for tracker in trackers:
            tracker.store_init_configuration(_flat(config))
    opened = Trackers(trackers, run, elsewhere.told, shows_samples=_shows_samples(section, out))
    try:
        yield opened
    finally:
        with writing(run.folder), redirect_stdout(sys.stderr):  # what is buffered is written now
            for tracker in trackers:
                tracker.finish()
            if not names.keys().isdisjoint(ELSEWHERE):
                elsewhere.told = opened.last
                elsewhere.write(run)


def _shows_samples(section: TrackingSection, out: Path) -> bool:
    every = section.samples_every
    return (
        every is not None and not set(section.trackers).isdisjoint(ELSEWHERE) and (round_number(out) - 1) % every == 0
    )


def _clear(run: TrackedRun) -> None:
    """Remove files of an earlier start of a step that is a run of its own; in a run trackers replace their own part."""
    if run.step or not run.folder.is_dir():
        return
    for entry in run.folder.iterdir():
        if entry.is_dir() and entry.name != "wandb":
            shutil.rmtree(entry)
        elif entry.is_file() and entry.name != NOTE:
            entry.unlink()


def _lines_until(path: Path, last: int) -> Iterator[str]:
    """Lines up to this step; one that was cut off ends them."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > last:
            return
        yield line


def _installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, as wandb leaves one behind, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _start(name: str, section: TrackingSection, run: TrackedRun, run_id: str) -> GeneralTracker:
    tracker: GeneralTracker
    if name == "jsonl":
        tracker = JsonLinesTracker(run.folder / "metrics.jsonl", run.before)
    elif name == "tensorboard":
        tracker = _tensorboard(run)
    elif name == "trackio":
        tracker = _Trackio(section.project, name=f"{run.name}-{run_id}", resume="allow")
    else:
        return _start_wandb(section, run, run_id)
    tracker.start()
    return tracker


def _tensorboard(run: TrackedRun) -> _TensorBoard:
    """A file for each step, all in the run's folder; that of an earlier start is removed."""
    suffix = f".{run.step.replace('/', '.')}" if run.step else ""
    for file in (run.folder / "tensorboard").glob(f"events*{suffix}"):
        file.unlink()
    return _TensorBoard("tensorboard", logging_dir=run.folder, filename_suffix=suffix)


def _start_wandb(section: TrackingSection, run: TrackedRun, run_id: str) -> WandBTracker:
    import wandb

    tracker = WandBTracker(section.project, dir=run.folder, name=run.name, id=run_id, resume="allow")
    try:
        tracker.start()
    except wandb.Error as error:
        raise RecipeError(
            f"tracking.trackers: wandb did not start ({error}); run `wandb login`, or set WANDB_MODE=offline"
        ) from error
    return tracker


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names with values of one level, lists as JSON, which is what trackers take."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value
    return flat
