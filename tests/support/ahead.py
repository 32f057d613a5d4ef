"""Engines that take all batches before they give the first result, as one that is fed may."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.engines.loading import open_model, open_scorer
from stages.engines.models import Models
from stages.engines.protocol import Batch, Completion, Generator
from stages.engines.transformers_engine import TransformersEngine
from stages.recipe import Recipe


class AheadEngine(TransformersEngine):
    def stream(self, batches: Iterable[Batch]) -> Iterator[list[list[Completion]]]:
        return super().stream(list(batches))


class AheadModels(Models):
    def engine(self, path: Path, recipe: Recipe, *, as_trained: bool = False) -> Generator:
        vlm = open_scorer(path, recipe) if as_trained else open_model(path, recipe)
        section = recipe.engine
        return AheadEngine(vlm, rows_per_batch=section.rows_per_batch, tokens_per_batch=section.tokens_per_batch)
