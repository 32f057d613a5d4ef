"""Load a vision-language checkpoint with its processor, and save the next one."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import GENERATION_CONFIG_NAME

from stages.artifacts.weights import INDEX, WEIGHTS
from stages.errors import ModelError
from stages.model.architecture import check_finite, check_loaded, check_tensors, empty_model
from stages.model.codec import Codec
from stages.model.encoding import find_encoding
from stages.model.image_cache import CachedImageProcessor
from stages.model.masters import take_masters
from stages.model.mixed_precision import Trained, kept_in_float32, rounded_weights
from stages.model.prompts import check_chat_template
from stages.model.tree_attention import use_tree_attention
from stages.model.trust import check_trusted
from stages.model.video_positions import continue_behind_videos
from stages.model.vision_tokens import vision_ids
from stages.model.window_attention import use_window_attention
from stages.runtime import processes

_COPY = "fetch or copy the model folder again"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class VisionLanguageModel(Codec):
    """A loaded model with everything that turns problems into its tokens and back."""

    model: Any
    """Its `generation_config` is neutral: see `wrap_model`."""
    generation_config: GenerationConfig
    """The checkpoint's own, which is saved with it again."""
    autocast_dtype: torch.dtype | None
    """Type that float32 weights compute in; None leaves the weights' own."""
    rounded: frozenset[str] = frozenset()
    """Names of weights that every use rounds to `autocast_dtype`: they are saved so."""
    masters: Path | None = None
    """The optimizer's state with float32 ones of them, if the checkpoint has one."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    def precision(self, *, passes: bool = False) -> AbstractContextManager[Any]:
        """The one numerics in which this model samples, scores and trains: another shifts every ratio.

        Autocast keeps its copies of float32 weights to the end, 2 bytes a parameter, only where they serve several
        `passes`.
        """
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype, cache_enabled=passes)

    def exact(self) -> VisionLanguageModel:
        """Without autocast, which would round weights that are all float32: checks find the smallest errors so."""
        rests_rounded = any(weight.dtype == self.autocast_dtype for weight in self.model.parameters())
        return self if rests_rounded else replace(self, autocast_dtype=None)

    def save(self, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a plain Hugging Face checkpoint: safetensors, configuration, processor and tokenizer.

        `state` are the weights where the model holds only a part of them. Those that every use rounds are rounded.
        """
        self.model.save_pretrained(folder, state_dict=self._as_used(state or self.model.state_dict()))
        # `save_pretrained` refuses settings that it reads, as a temperature beside do_sample=false.
        self.generation_config.to_json_file(folder / GENERATION_CONFIG_NAME)
        if self.autocast_dtype is not None:  # `save_pretrained` declares the type of the weights in training
            config = copy.deepcopy(self.model.config)
            _declare(config, self.autocast_dtype)
            config.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _as_used(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors that have several names keep them."""
        rounded = {weight: weight.to(self.autocast_dtype) for name, weight in state.items() if name in self.rounded}
        return {name: rounded.get(weight, weight) for name, weight in state.items()}


def load_model(
    path: Path | str,
    *,
    dtype: str = "float32",
    trained: Trained | None = None,
    in_training: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    trust_remote_code: bool = False,
    image_cache: Path | None = None,
    masters: Path | None = None,
    quantized: bool = False,
) -> VisionLanguageModel:
    """Load the checkpoint at `path`; `dtype` is a key of `DTYPES`.

    With `trained` it computes in `dtype` as a model in training does: trained weights are float32, as updates of 1e-6
    vanish in bfloat16 ones, and so is what `rounded_weights` leaves out. Without, all weights are of `dtype`.
    Preprocessed images are kept in the folder `image_cache`, if one is given. Trained weights that the checkpoint holds
    rounded come from `masters`, the optimizer's state that was saved with it.
    It goes onto the GPU if there is one, layer by layer onto all of them if there are several, else onto the CPU. Of
    several processes each loads onto its own GPU. What is `in_training`, a trained model or the reference beside it,
    each loads onto the CPU instead where a trainer then cuts it into shards, and so is what will be `quantized`.

    Raises:
        ModelError: as `load_codec`, `check_loaded` and `check_finite`; the hub has no such safetensors.
    """
    codec = load_codec(
        path,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        trust_remote_code=trust_remote_code,
        image_cache=image_cache,
    )
    device_map = "cpu" if quantized else _device_map(in_training)
    if trained is None or dtype == "float32":
        model = _load_weights(path, DTYPES[dtype], device_map, trust_remote_code)
        return wrap_model(model, codec.processor)
    empty = empty_checkpoint(path, trust_remote_code)
    rounded = rounded_weights(empty, trained)
    kept = empty.state_dict().keys() - rounded
    with kept_in_float32(type(empty), kept):
        model = _load_weights(
            path,
            DTYPES[dtype] if rounded else torch.float32,
            device_map,
            trust_remote_code,
            masters=None if trained == "none" else masters,
        )
    used_rounded = rounded_weights(empty, "none")
    return replace(wrap_model(model, codec.processor, DTYPES[dtype]), rounded=used_rounded, masters=masters)


def empty_checkpoint(path: Path | str, trust_remote_code: bool) -> Any:
    """The transformers model at `path` without its weights, on the meta device.

    Raises:
        ModelError: its configuration cannot be read.
    """
    return empty_model(_load_config(path, trust_remote_code), trust_remote_code)


def load_masters(vlm: VisionLanguageModel) -> Any:
    """The model that `vlm` was loaded from, in float32 on the CPU; `rounded` weights from `masters`, if it has any.

    Raises:
        ModelError: it is not there any more.
    """
    path = vlm.model.name_or_path
    check_model_folder(path)
    return _load_weights(
        path, torch.float32, "cpu", trust_remote_code=False, model_class=type(vlm.model), masters=vlm.masters
    )


def _load_weights(
    path: Path | str,
    dtype: torch.dtype,
    device_map: str | dict[str, torch.device],
    trust_remote_code: bool,
    model_class: Any = AutoModelForImageTextToText,
    masters: Path | None = None,
) -> Any:
    try:
        loaded = model_class.from_pretrained(
            path,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=_only_local(path, trust_remote_code),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except OSError as error:
        raise ModelError(
            f"{path}: no safetensors to be had ({_one_line(error)}); take a checkpoint that has them, other formats "
            "can run code"
        ) from error
    model, info = loaded
    check_loaded(path, info)
    if masters is not None:
        take_masters(model, masters)
    check_finite(path, model)
    return model.eval()


def _declare(config: Any, dtype: torch.dtype) -> None:
    config.dtype = dtype
    for name in config.sub_configs:
        _declare(getattr(config, name), dtype)


def load_codec(
    path: Path | str,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    trust_remote_code: bool = False,
    image_cache: Path | None = None,
) -> Codec:
    """What `load_model` with the same arguments knows about prompts and responses, without the weights.

    Raises:
        ModelError: as `check_model_folder`, `check_trusted`, `check_tensors` and `find_encoding`; configuration or
            processor cannot be read; it is no image-text-to-text model; its processor is another model's; its chat
            template is of no use; or no end token is named, or one that it does not have.
    """
    check_model_folder(path)
    check_trusted(path, trust_remote_code)
    config = _load_config(path, trust_remote_code)
    check_tensors(path, config, trust_remote_code)
    processor = _load_processor(path, min_pixels, max_pixels, trust_remote_code, image_cache)
    _check_image_token(path, config, processor)
    check_chat_template(processor)
    return _make_codec(processor, config, _load_generation_config(path, config, trust_remote_code))


def wrap_model(model: Any, processor: Any, autocast_dtype: torch.dtype | None = None) -> VisionLanguageModel:
    """Bundle a model and its processor with the ids that end a response and those that may not be sampled.

    A checkpoint's own sampling defaults (repetition penalty, top-k) would change the sampled distribution behind the
    log-probs' back, so the model is left with none.
    """
    codec = _make_codec(processor, model.config, model.generation_config)
    use_tree_attention(model)
    use_window_attention(model)
    continue_behind_videos(model)
    generation_config, model.generation_config = model.generation_config, GenerationConfig()
    return VisionLanguageModel(
        **vars(codec), model=model, generation_config=generation_config, autocast_dtype=autocast_dtype
    )


def check_model_folder(path: Path | str) -> None:
    """Refuse a local model folder that misses a part, or has one that is cut off; a hub name passes.

    Raises:
        ModelError: names the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        if len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.exists():
            return
        raise ModelError(f"{path}: no such model folder; give a folder with config.json or a hub name org/model")
    for needed in ("config.json", "tokenizer_config.json"):
        if not (folder / needed).is_file():
            raise ModelError(f"{path}: {needed} is missing; a model folder is a plain Hugging Face checkpoint")
    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise ModelError(
            f"{path}: no preprocessor_config.json or processor_config.json; save the processor beside the weights"
        )
    if not list(folder.glob("*.safetensors")):
        others = ", ".join(sorted(file.name for file in folder.glob("*.bin")))
        raise ModelError(
            f"{path}: no *.safetensors file{others and f', only {others}'}; other formats can run code and are not "
            "read: load the model where you trust it and save it again with save_pretrained"
        )
    for file in folder.glob("*.json"):
        _read_json(file)
    weights = {file.name: _tensors(file) for file in sorted(folder.glob("*.safetensors"))}
    if WEIGHTS not in weights:
        _check_shards(folder, weights)


def _check_shards(folder: Path, weights: Mapping[str, Set[str]]) -> None:
    """Every tensor of the index lies in the file that it names; `weights` are the names of the tensors by file."""
    index = folder / INDEX
    if not index.is_file():
        raise ModelError(f"{folder}: neither {WEIGHTS} nor {index.name}; {_COPY}")
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ModelError(f"{index}: no weight_map; {_COPY}")
    for tensor, file in named.items():
        if file not in weights:
            raise ModelError(f"{folder}: {file} is missing, which {index.name} names; {_COPY}")
        if tensor not in weights[file]:
            raise ModelError(f"{folder / file}: no tensor {tensor}, which {index.name} places there; {_COPY}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not JSON ({error}); {_COPY}") from error
    return value if isinstance(value, dict) else {}


def _tensors(file: Path) -> Set[str]:
    """Names of its tensors; a file whose length is not what its header says is cut off."""
    try:
        with safe_open(file, framework="np") as tensors:
            return frozenset(tensors.keys())
    except SafetensorError as error:
        raise ModelError(f"{file}: not a whole safetensors file ({error}); {_COPY}") from error


def _only_local(path: Path | str, trust_remote_code: bool) -> bool:
    """Whether transformers is to look nowhere but in this folder; code that is trusted may lie on the hub."""
    return Path(path).is_dir() and not trust_remote_code


def _device_map(in_training: bool) -> str | dict[str, torch.device]:
    if processes.count() > 1:
        return "cpu" if in_training and processes.will_shard() else {"": processes.device()}
    if torch.cuda.device_count() > 1:
        return "auto"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load_processor(
    path: Path | str,
    min_pixels: int | None,
    max_pixels: int | None,
    trust_remote_code: bool,
    image_cache: Path | None,
) -> Any:
    pixels = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    try:
        processor = AutoProcessor.from_pretrained(
            path,
            trust_remote_code=trust_remote_code,
            local_files_only=_only_local(path, trust_remote_code),
            **{k: v for k, v in pixels.items() if v is not None},
        )
    except Exception as error:  # whatever the files make its classes raise
        raise ModelError(
            f"{path}: its processor cannot be loaded ({_one_line(error)}); save the model's own beside the weights"
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise ModelError(
            f"{path}: its processor is a {type(processor).__name__}, which takes no images; save the model's own "
            "beside the weights"
        )
    if image_cache is not None:
        processor.image_processor = CachedImageProcessor(processor.image_processor, image_cache)
    return processor


def _load_config(path: Path | str, trust_remote_code: bool) -> Any:
    try:
        config = AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=_only_local(path, trust_remote_code)
        )
    except Exception as error:  # whatever the file makes its classes raise
        raise ModelError(
            f"{path}: its config.json cannot be read ({_one_line(error)}); save the checkpoint again"
        ) from error
    own_code = "AutoModelForImageTextToText" in getattr(config, "auto_map", {})
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not own_code:
        raise ModelError(
            f"{path}: {config.model_type} is not an image-text-to-text model that transformers knows; take a "
            "vision-language checkpoint, as Qwen2.5-VL or InternVL"
        )
    return config


def _load_generation_config(path: Path | str, config: Any, trust_remote_code: bool) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(path, local_files_only=_only_local(path, trust_remote_code))
    except OSError:
        return GenerationConfig.from_model_config(config)
    except Exception as error:  # whatever the file makes its class raise
        raise ModelError(
            f"{path}: its generation_config.json cannot be read ({_one_line(error)}); save it again, or delete it"
        ) from error


def _check_image_token(path: Path | str, config: Any, processor: Any) -> None:
    """What the processor puts into a prompt for an image must be what the model replaces by the image.

    That need not be the `image_token_id` of the processor: Gemma 3's is the token that it replaces.
    """
    wanted = getattr(config, "image_token_id", None)
    given = [token for token in getattr(processor, "image_token_ids", []) if isinstance(token, int)]
    if given and isinstance(wanted, int) and wanted not in given:
        raise ModelError(
            f"{path}: its {type(processor).__name__} writes token {given[0]} for an image, the {config.model_type} "
            f"model reads token {wanted}; save the model's own processor beside the weights"
        )


def _one_line(error: Exception) -> str:
    """Its first sentence or so: transformers writes paragraphs."""
    return " ".join(str(error).split())[:200]


def _make_codec(processor: Any, config: Any, generation_config: GenerationConfig) -> Codec:
    named = generation_config.eos_token_id
    if named is None:
        named = processor.tokenizer.eos_token_id
    end_ids = tuple(named) if isinstance(named, list) else () if named is None else (named,)
    if not end_ids:
        raise ModelError(
            f"{config.name_or_path}: neither generation_config nor the tokenizer names an end token; "
            "set eos_token_id in generation_config.json"
        )
    vocabulary = config.get_text_config().vocab_size
    for end_id in end_ids:
        if type(end_id) is not int or not 0 <= end_id < vocabulary:
            raise ModelError(
                f"{config.name_or_path}: its end token {end_id!r} is no id below the vocabulary of {vocabulary}; set "
                "eos_token_id in generation_config.json"
            )
    return Codec(
        processor=processor,
        end_ids=end_ids,
        banned_ids=_banned_ids(config, processor, end_ids),
        max_length=getattr(config.get_text_config(), "max_position_embeddings", None),
        encoding=find_encoding(processor),
    )


def _banned_ids(config: Any, processor: Any, end_ids: tuple[int, ...]) -> tuple[int, ...]:
    vocabulary = config.get_text_config().vocab_size
    beyond = set(range(len(processor.tokenizer), vocabulary))
    known = {token for token in vision_ids(config, processor) if token < vocabulary}
    return tuple(sorted((known | beyond) - set(end_ids)))
