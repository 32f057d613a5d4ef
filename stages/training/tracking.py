"""Training metrics while they come: JSON lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from stages.artifacts.step import TRACKING
from stages.artifacts.writing import writing
from stages.errors import RecipeError
from stages.runtime import processes
from stages.sections import TrackingSection


class JsonLinesTracker(GeneralTracker):  # type: ignore[misc]
    """One line a log: `{"step": 3, "loss": 0.5}`."""

    name = "jsonl"
    requires_logging_directory = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file: TextIO

    @property
    def tracker(self) -> TextIO:
        return self._file

    def start(self) -> None:
        self._file = self._path.open("w", encoding="utf-8")

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        print(json.dumps({"step": step} | values), file=self._file, flush=True)

    def finish(self) -> None:
        self._file.close()


class Trackers:
    """The trackers of one step, which write to `folder`."""

    def __init__(self, trackers: Sequence[GeneralTracker] = (), folder: Path = Path()) -> None:
        self._trackers = trackers
        self._folder = folder

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        with writing(self._folder):
            for tracker in self._trackers:
                tracker.log(dict(metrics), step=step)


def check_trackers(section: TrackingSection) -> None:
    """Refuse trackers that cannot be had, before any compute.

    Raises:
        RecipeError: a package is not installed.
    """
    for name in section.trackers:
        if name != "jsonl" and not _installed(name):
            raise RecipeError(f"tracking.trackers: {name} is not installed; pip install 'difference-feedback[{name}]'")


@contextmanager
def open_trackers(section: TrackingSection, out: Path, config: Mapping[str, Any]) -> Iterator[Trackers]:
    """Run the section's trackers on the main process, none on the others; `config` is what they show of the recipe.

    Their files in `out` replace those of a start that was stopped.

    Raises:
        RecipeError: wandb does not start.
        ArtifactError: as `writing`.
    """
    if not section.trackers or not processes.is_main():
        yield Trackers()
        return
    folder = out / TRACKING
    shutil.rmtree(folder, ignore_errors=True)
    with writing(folder):
        folder.mkdir(parents=True)
        trackers = [_start(name, section, folder) for name in dict.fromkeys(section.trackers)]
        for tracker in trackers:
            tracker.store_init_configuration(_flat(config))
    try:
        yield Trackers(trackers, folder)
    finally:
        with writing(folder):  # what is buffered is written now
            for tracker in trackers:
                tracker.finish()


def _installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, as wandb leaves one behind, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _start(name: str, section: TrackingSection, folder: Path) -> GeneralTracker:
    if name == "wandb":
        return _start_wandb(section, folder)
    tracker = (
        TensorBoardTracker(name, logging_dir=folder)
        if name == "tensorboard"
        else JsonLinesTracker(folder / "metrics.jsonl")
    )
    tracker.start()
    return tracker


def _start_wandb(section: TrackingSection, folder: Path) -> WandBTracker:
    import wandb

    tracker = WandBTracker(section.project, dir=folder, name="/".join(folder.absolute().parts[-3:-1]))
    try:
        tracker.start()
    except wandb.Error as error:
        raise RecipeError(
            f"tracking.trackers: wandb did not start ({error}); run `wandb login`, or set WANDB_MODE=offline"
        ) from error
    return tracker


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names with values of one level, which is what trackers take."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
