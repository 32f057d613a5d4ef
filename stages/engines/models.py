"""Who opens the models of a stage: the stage itself, or a process that keeps them from one stage to the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.engines.loading import (
    alone,
    embedded_engine,
    open_codec,
    open_engine,
    open_model,
    open_sampler,
    open_scorer,
)
from stages.engines.protocol import Generator
from stages.model.codec import Codec
from stages.model.loading import VisionLanguageModel
from stages.recipe import Recipe


class Models:
    """Opens each model anew where a stage asks for it."""

    def codec(self, path: Path, recipe: Recipe) -> Codec:
        """As `open_codec`."""
        return open_codec(path, recipe)

    def engine(self, path: Path, recipe: Recipe, *, as_trained: bool = False) -> Generator:
        """As `open_engine`."""
        return open_engine(path, recipe, as_trained=as_trained)

    def engine_alone(self, path: Path, recipe: Recipe) -> Generator:
        """The same where no other weights are on its devices."""
        return self.engine(path, alone(recipe))

    def scorer(self, path: Path, recipe: Recipe) -> Generator:
        """What scores as the trained model does, and is not asked to generate: the embedded engine."""
        return embedded_engine(open_scorer(path, recipe), recipe)

    def sampler(self, vlm: VisionLanguageModel, path: Path, recipe: Recipe) -> Generator:
        """As `open_sampler`."""
        return open_sampler(vlm, path, recipe)

    def trainer(self, policy: Path, recipe: Recipe, make: Callable[[VisionLanguageModel], Any]) -> Any:
        """What `make` makes of the policy, whose weights are float32: a `Trainer`."""
        return make(open_model(policy, recipe, master_weights=True))

    def trained(self, trainer: Any, policy: Path, out: Path, recipe: Recipe) -> None:
        """What the trainer has made of the policy lies in the complete step `out`."""
