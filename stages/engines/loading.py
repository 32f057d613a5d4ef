"""Open a checkpoint for generation, or for generation and training."""

from __future__ import annotations

from pathlib import Path

from stages.artifacts.step import model_folder
from stages.engines.protocol import Generator, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.model.loading import VisionLanguageModel, check_model_folder, load_model
from stages.recipe import Recipe
from stages.seeds import Purpose, derive_seed


def open_model(path: Path, recipe: Recipe, *, master_weights: bool = False) -> VisionLanguageModel:
    """Load a checkpoint, or a training step's.

    Whatever trains, or makes the old log-probs of what is trained, takes `master_weights`: both then compute alike.
    """
    section = recipe.model
    return load_model(
        model_folder(path),
        dtype=section.dtype,
        master_weights=master_weights,
        min_pixels=section.min_pixels,
        max_pixels=section.max_pixels,
        trust_remote_code=section.trust_remote_code,
        image_cache=section.image_cache,
    )


def open_engine(path: Path, recipe: Recipe, *, master_weights: bool = False) -> Generator:
    """The recipe's engine with this checkpoint; `master_weights` as `open_model`."""
    return embedded_engine(open_model(path, recipe, master_weights=master_weights), recipe)


def embedded_engine(vlm: VisionLanguageModel, recipe: Recipe) -> TransformersEngine:
    """The engine that generates with a model in this process, one that is being trained too."""
    section = recipe.engine
    return TransformersEngine(vlm, rows_per_batch=section.rows_per_batch, tokens_per_batch=section.tokens_per_batch)


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
