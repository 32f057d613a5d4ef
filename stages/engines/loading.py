"""Open a checkpoint for generation, or for generation and training."""

from __future__ import annotations

from pathlib import Path

from stages.artifacts.step import model_folder
from stages.engines.transformers_engine import TransformersEngine
from stages.model.loading import check_model_folder, load_model
from stages.recipe import Recipe


def open_engine(path: Path, recipe: Recipe, *, training: bool = False) -> TransformersEngine:
    """Load a checkpoint, or a training step's.

    For training the weights are float32 whatever the recipe's dtype, which is then the autocast's: updates of 1e-6
    vanish in bfloat16 weights.
    """
    section = recipe.model
    vlm = load_model(
        model_folder(path),
        dtype="float32" if training else section.dtype,
        min_pixels=section.min_pixels,
        max_pixels=section.max_pixels,
        trust_remote_code=section.trust_remote_code,
    )
    return TransformersEngine(vlm, rows_per_batch=recipe.engine.rows_per_batch)


def check_model(path: Path) -> None:
    """Refuse a model before any compute.

    Raises:
        ModelError: a part is missing.
        ArtifactError: it is the output of a step that is not complete.
    """
    check_model_folder(model_folder(path))
