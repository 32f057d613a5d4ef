"""A tiny, untrained model of each vision-language family, of its own classes, with its own tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerBase

PLACE = "@IMAGE@"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + PLACE + "{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_SIDE = 28
"""Pixels of a tile, where a family cuts or resizes images to squares."""

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": _SIDE,
    "patch_size": 14,
    "initializer_range": 0.2,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_INTERLEAVED = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
_QWEN_TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "initializer_range": 0.2,
}
_QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_QWEN_PLACE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Family:
    """How a family's parts are made.

    `tokens` are its special tokens by their names in the tokenizer; ids of those that the configuration names are put
    there. `processor` is given the tokenizer.
    """

    model_type: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    processor: Callable[[PreTrainedTokenizerBase], Any]
    tokens: Mapping[str, str] = field(default_factory=lambda: {"image_token": "<image>"})
    ids: Mapping[str, str] = field(default_factory=lambda: {"image_token_index": "<image>"})
    """Fields of the configuration that hold a token's id, and the token."""
    place: str = "<image>"
    """What its chat template writes for an image."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the configuration."""


def make(family: Family, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Save a random checkpoint of the family in `folder`."""
    tokenizer.save_pretrained(folder)
    tokenizer = type(tokenizer).from_pretrained(
        folder, bos_token="<|endoftext|>", extra_special_tokens=dict(family.tokens)
    )
    processor = family.processor(tokenizer)
    processor.chat_template = _TEMPLATE.replace(PLACE, family.place)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer)} | ends | dict(family.text)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in family.ids.items()}
    config = transformers.CONFIG_MAPPING[family.model_type](
        text_config=text, vision_config=dict(family.vision), **ids, **family.more
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():  # as Gemma 3's projector, to which an image would be nothing
                weight.normal_(std=0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen(name: str, images: Any) -> Callable[[PreTrainedTokenizerBase], Any]:
    def processor(tokenizer: PreTrainedTokenizerBase) -> Any:
        video = transformers.Qwen2VLVideoProcessor if images is _qwen2_images else transformers.Qwen3VLVideoProcessor
        return getattr(transformers, name)(images(), tokenizer, video())

    return processor


def _qwen2_images() -> Any:
    return transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 16)


def _qwen3_images() -> Any:
    return transformers.Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 16}
    )


def _internvl(tokenizer: PreTrainedTokenizerBase) -> Any:
    size = {"height": _SIDE, "width": _SIDE}
    return transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size),
        tokenizer,
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=1,
    )


def _gemma3(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.Gemma3ImageProcessor(size={"height": _SIDE, "width": _SIDE})
    return transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)


def _gemma4(tokenizer: PreTrainedTokenizerBase) -> Any:
    own = {"patch_size": 8, "max_soft_tokens": 70, "pooling_kernel_size": 2}
    return transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(),
        transformers.Gemma4ImageProcessor(**own),
        tokenizer,
        transformers.Gemma4VideoProcessor(**own),
        image_seq_length=70,
    )


def _smolvlm(tokenizer: PreTrainedTokenizerBase) -> Any:
    own = {"size": {"longest_edge": 2 * _SIDE}, "max_image_size": {"longest_edge": _SIDE}}
    return transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**own),
        tokenizer,
        transformers.SmolVLMVideoProcessor(size=own["size"], max_image_size=own["max_image_size"]),
        image_seq_len=1,
    )


def _idefics3(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 2 * _SIDE}, max_image_size={"longest_edge": _SIDE}
    )
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=1)


def _idefics2(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.Idefics2ImageProcessor(size={"shortest_edge": 28, "longest_edge": 84})
    return transformers.Idefics2Processor(images, tokenizer, image_seq_len=3)


_PINPOINTS = [[_SIDE, 2 * _SIDE], [2 * _SIDE, _SIDE], [2 * _SIDE, 2 * _SIDE], [_SIDE, 3 * _SIDE]]


def _llava(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.CLIPImageProcessor(size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE})
    return transformers.LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _llava_next(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": _SIDE},
        crop_size={"height": _SIDE, "width": _SIDE},
        image_grid_pinpoints=_PINPOINTS,
    )
    return transformers.LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _llava_onevision(tokenizer: PreTrainedTokenizerBase) -> Any:
    size = {"height": _SIDE, "width": _SIDE}
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=_PINPOINTS),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
    )


def _pixtral(merge: int) -> Callable[[PreTrainedTokenizerBase], Any]:
    def processor(tokenizer: PreTrainedTokenizerBase) -> Any:
        images = transformers.PixtralImageProcessor(size={"longest_edge": 84}, patch_size=14 * merge)
        return transformers.PixtralProcessor(images, tokenizer, patch_size=14, spatial_merge_size=merge)

    return processor


def _glm4v(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.Glm4vImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16})
    return transformers.Glm4vProcessor(images, tokenizer, transformers.Glm4vVideoProcessor())


def _aya(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.GotOcr2ImageProcessor(size={"height": _SIDE, "width": _SIDE}, crop_to_patches=True)
    return transformers.AyaVisionProcessor(images, tokenizer, patch_size=14, img_size=_SIDE, downsample_factor=2)


def _lfm2(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.Lfm2VlImageProcessor(
        tile_size=64, min_image_tokens=4, max_image_tokens=16, max_tiles=4, encoder_patch_size=16
    )
    return transformers.Lfm2VlProcessor(images, tokenizer)


def _paligemma(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.SiglipImageProcessor(size={"height": _SIDE, "width": _SIDE})
    images.image_seq_length = 4
    return transformers.PaliGemmaProcessor(images, tokenizer)


def _mllama(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.MllamaImageProcessor(size={"height": _SIDE, "width": _SIDE}, max_image_tiles=4)
    return transformers.MllamaProcessor(images, tokenizer)


def _kimi(tokenizer: PreTrainedTokenizerBase) -> Any:
    images = transformers.Kimi_K25ImageProcessor(max_patches=64)
    return transformers.Kimi_K25Processor(images, tokenizer, transformers.Kimi_K25VideoProcessor(max_patches=64))


_QWEN2_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_QWEN2 = {"tokens": _QWEN_TOKENS, "ids": _QWEN2_IDS, "place": _QWEN_PLACE}
_IDEFICS = {
    "tokens": {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "image_boundary_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    },
    "ids": {"image_token_id": "<image>"},
}
_LLAMA = _TEXT | {"model_type": "llama"}
_PIXTRAL_TOKENS = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}

FAMILIES = {
    "Qwen2-VL": Family(
        "qwen2_vl",
        _TEXT | {"rope_parameters": _MROPE},
        {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2, "initializer_range": 0.2},
        _qwen("Qwen2VLProcessor", _qwen2_images),
        **_QWEN2,
    ),
    "Qwen2.5-VL, MiMo-VL": Family(
        "qwen2_5_vl",
        _TEXT | {"rope_parameters": _MROPE},
        _QWEN_TOWER | {"fullatt_block_indexes": [1], "window_size": 56},
        _qwen("Qwen2_5_VLProcessor", _qwen2_images),
        **_QWEN2,
    ),
    "Qwen3-VL": Family(
        "qwen3_vl",
        _TEXT | {"rope_parameters": _INTERLEAVED},
        _QWEN_TOWER | {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
        _qwen("Qwen3VLProcessor", _qwen3_images),
        **_QWEN2,
    ),
    "Qwen3-VL, experts": Family(
        "qwen3_vl_moe",
        _TEXT
        | {"rope_parameters": _INTERLEAVED}
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        _QWEN_TOWER | {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
        _qwen("Qwen3VLProcessor", _qwen3_images),
        **_QWEN2,
    ),
    "Qwen3.5": Family(
        "qwen3_5",
        _TEXT
        | {"rope_parameters": _INTERLEAVED}
        | {"layer_types": ["linear_attention", "full_attention"]}
        | {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2}
        | {"linear_num_value_heads": 2},
        _QWEN_TOWER | {"num_position_embeddings": 16},
        _qwen("Qwen3VLProcessor", _qwen3_images),
        **_QWEN2,
    ),
    "InternVL3.5": Family(
        "internvl",
        _TEXT | {"model_type": "qwen3"},
        _TOWER,
        _internvl,
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        {"image_token_id": "<IMG_CONTEXT>"},
        "<IMG_CONTEXT>\n",
        {"image_seq_length": 1},
    ),
    "Gemma 3": Family(
        "gemma3",
        _TEXT | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16},
        _TOWER,
        _gemma3,
        {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        {
            "image_token_index": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        "<start_of_image>",
        {"mm_tokens_per_image": 4},
    ),
    "Gemma 4": Family(
        "gemma4",
        _TEXT
        | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "global_head_dim": 16}
        | {"use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0},
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "pooling_kernel_size": 2,
            "patch_size": 8,
            "position_embedding_size": 64,
            "initializer_range": 0.2,
        },
        _gemma4,
        {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        {
            "image_token_id": "<|image|>",
            "boi_token_id": "<|image>",
            "eoi_token_id": "<image|>",
            "audio_token_id": "<|audio|>",
        },
        "<|image|>",
    ),
    "SmolVLM2": Family("smolvlm", _LLAMA, _TOWER, _smolvlm, **_IDEFICS),
    "Idefics3": Family("idefics3", _LLAMA, _TOWER, _idefics3, **_IDEFICS),
    "Idefics2": Family(
        "idefics2",
        _LLAMA | {"model_type": "mistral"},
        _TOWER | {"image_size": 84},
        _idefics2,
        **_IDEFICS,
        more={
            "perceiver_config": {
                "resampler_n_latents": 3,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
                "num_key_value_heads": 1,
                "hidden_size": 32,
                "initializer_range": 0.2,
            }
        },
    ),
    "LLaVA-1.5": Family(
        "llava", _LLAMA, _TOWER | {"model_type": "clip_vision_model"}, _llava, more={"image_seq_length": 4}
    ),
    "LLaVA-NeXT": Family(
        "llava_next",
        _LLAMA,
        _TOWER | {"model_type": "clip_vision_model"},
        _llava_next,
        more={"image_grid_pinpoints": _PINPOINTS, "image_seq_length": 4},
    ),
    "LLaVA-OneVision": Family(
        "llava_onevision",
        _TEXT | {"model_type": "qwen2"},
        _TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False},
        _llava_onevision,
        {"image_token": "<image>", "video_token": "<video>"},
        {"image_token_index": "<image>", "video_token_index": "<video>"},
        more={"image_grid_pinpoints": _PINPOINTS},
    ),
    "Pixtral": Family(
        "llava",
        _LLAMA | {"model_type": "mistral", "sliding_window": None},
        _TOWER | {"model_type": "pixtral", "image_size": 84, "head_dim": 16},
        _pixtral(1),
        _PIXTRAL_TOKENS,
        {"image_token_index": "[IMG]"},
        "[IMG]",
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "image_seq_length": 4},
    ),
    "Mistral3": Family(
        "mistral3",
        _LLAMA | {"model_type": "mistral", "sliding_window": None},
        _TOWER | {"model_type": "pixtral", "image_size": 84, "head_dim": 16},
        _pixtral(2),
        _PIXTRAL_TOKENS,
        {"image_token_index": "[IMG]"},
        "[IMG]",
    ),
    "GLM-4V": Family(
        "glm4v",
        _TEXT | {"rope_parameters": _MROPE},
        {name: value for name, value in _QWEN_TOWER.items() if name != "hidden_act"} | {"image_size": 84},
        _glm4v,
        {"image_token": "<|image|>", "video_token": "<|video|>"}
        | {
            f"{edge}_of_{kind}_token": f"<|{edge}_of_{kind}|>"
            for edge in ("begin", "end")
            for kind in ("image", "video")
        },
        {
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
        },
        "<|begin_of_image|><|image|><|end_of_image|>",
    ),
    "Aya Vision": Family(
        "aya_vision",
        _TEXT
        | {"model_type": "cohere2", "logit_scale": 1.0, "sliding_window": 16}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        _TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False},
        _aya,
        {
            "start_of_img_token": "<|START_OF_IMG|>",
            "end_of_img_token": "<|END_OF_IMG|>",
            "img_patch_token": "<|IMG_PATCH|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
            "tile_global_token": "TILE_GLOBAL",
        },
        {"image_token_index": "<|IMG_PATCH|>"},
    ),
    "LFM2-VL": Family(
        "lfm2_vl",
        _TEXT | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
        {name: value for name, value in _TOWER.items() if name != "image_size"}
        | {"model_type": "siglip2_vision_model", "patch_size": 16, "num_patches": 16, "vision_use_head": False},
        _lfm2,
        {
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        {"image_token_id": "<image>"},
        more={"projector_hidden_size": 32},
    ),
    "PaliGemma": Family(
        "paligemma",
        _TEXT | {"model_type": "gemma"},
        _TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 32},
        _paligemma,
        more={"projection_dim": 32, "hidden_size": 32},
    ),
    "Mllama": Family(
        "mllama",
        _TEXT | {"cross_attention_layers": [1]},
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
            "image_size": _SIDE,
            "patch_size": 14,
            "max_num_tiles": 4,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        },
        _mllama,
        {"image_token": "<|image|>", "python_token": "<|python_tag|>"},
        {"image_token_index": "<|image|>"},
        "<|image|>",
    ),
    "Kimi-K2.5": Family(
        "kimi_k25",
        {name: value for name, value in _TEXT.items() if name != "head_dim"}
        | {"model_type": "deepseek_v3", "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
        | {
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "first_k_dense_replace": 1,
        }
        | {
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "n_shared_experts": 1,
            "num_key_value_heads": 2,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
        },
        _kimi,
        {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"},
        {"image_token_id": "<|media_pad|>", "video_token_id": "<|kimi_k25_video_placeholder|>"},
        "<|media_pad|>",
        {"projection_hidden_size": 32},
    ),
}

README = Path(__file__).parents[2] / "stages" / "README.md"
ROWS = {
    name: (model_type, rows)
    for name, model_type, rows in re.findall(r"^\| ([^|]+) \| (`\w+`) \| ([^|]+) \|$", README.read_text(), re.MULTILINE)
    if rows == "packed" or rows.startswith(("plain: ", "refused: "))
}
"""Of each family in its table: `model_type` in config.json, and which rows it takes or what its refusal says."""
REFUSED = [name for name, (_, rows) in ROWS.items() if rows.startswith("refused")]
TAKEN = [name for name in ROWS if name not in REFUSED]


def even(response: str, problem: Mapping[str, Any]) -> float:  # noqa: ARG001, a reward's arguments
    """A reward that about half of the responses of a model without training get."""
    return float(len(response) % 2 == 0)
