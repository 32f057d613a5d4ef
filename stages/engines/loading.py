"""Open a checkpoint for generation, or for generation and training."""

from __future__ import annotations

from pathlib import Path

from stages.artifacts.step import model_folder
from stages.engines.protocol import Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.model.loading import check_model_folder, load_model
from stages.recipe import Recipe
from stages.seeds import Purpose, derive_seed


def open_engine(path: Path, recipe: Recipe, *, master_weights: bool = False) -> TransformersEngine:
    """Load a checkpoint, or a training step's.

    Whatever trains, or makes the old log-probs of what is trained, takes `master_weights`: both then compute alike.
    """
    section = recipe.model
    vlm = load_model(
        model_folder(path),
        dtype=section.dtype,
        master_weights=master_weights,
        min_pixels=section.min_pixels,
        max_pixels=section.max_pixels,
        trust_remote_code=section.trust_remote_code,
        image_cache=section.image_cache,
    )
    return TransformersEngine(
        vlm, rows_per_batch=recipe.engine.rows_per_batch, tokens_per_batch=recipe.engine.tokens_per_batch
    )


def check_model(path: Path) -> None:
    """Refuse a model before any compute.

    Raises:
        ModelError: a part is missing.
        ArtifactError: it is the output of a step that is not complete.
    """
    check_model_folder(model_folder(path))


def recipe_sampling(recipe: Recipe, purpose: Purpose, *path: int) -> Sampling:
    """Sampling as the recipe wants it, seeded for one purpose."""
    rollout = recipe.rollout
    return Sampling(rollout.max_new_tokens, rollout.temperature, derive_seed(recipe.seed, purpose, *path))
