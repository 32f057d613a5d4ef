"""A small random Qwen2.5-VL whose vocabulary, image and context are large enough to be worth timing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
VOCABULARY = 32_000
TOKEN_PIXELS = 28
"""Side of the square of pixels that is one visual token."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.06,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
    "bos_token_id": None,
}
VISION = {
    "depth": 3,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 256,
    "fullatt_block_indexes": [2],
    "initializer_range": 0.06,
}


def tiny_processor(vocabulary: int = VOCABULARY) -> Qwen2_5_VLProcessor:
    """Words `w6`, `w7`, … of one token each, between spaces."""
    words = SPECIAL + [f"w{index}" for index in range(len(SPECIAL), vocabulary)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
        clean_up_tokenization_spaces=False,
    )
    pixels = {"min_pixels": TOKEN_PIXELS**2, "max_pixels": TOKEN_PIXELS**2 * 2048}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(**pixels),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """13 million random float32 parameters, on the CPU."""
    return random_model(TEXT, VISION, seed, tied=True)


def random_model(
    text: dict[str, Any], vision: dict[str, Any], seed: int, *, tied: bool
) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights of torch's default type, on torch's default device, for the tokens of `tiny_processor`."""
    ids = {token: index for index, token in enumerate(SPECIAL)}
    end = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    config = Qwen2_5_VLConfig(
        text_config=text | end,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    for name, value in end.items():
        setattr(model.generation_config, name, value)
    return model.eval()


def describe(model: Any) -> str:
    """What was timed, in a line."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    vision = sum(parameter.numel() for parameter in model.model.visual.parameters())
    text, sight = model.config.text_config, model.config.vision_config
    dtype = str(model.dtype).removeprefix("torch.")
    tied = "tied" if model.config.tie_word_embeddings else "not tied"
    return (
        f"random Qwen2.5-VL, {dtype}, {parameters / 1e6:.1f} M parameters ({vision / 1e6:.1f} M of them vision): "
        f"vocabulary {text.vocab_size} ({tied}), hidden {text.hidden_size}, {text.num_hidden_layers} layers, "
        f"{text.num_attention_heads} heads over {text.num_key_value_heads} key-value heads, "
        f"MLP {text.intermediate_size}; vision depth {sight.depth}, hidden {sight.hidden_size}"
    )


def random_image(columns: int, rows: int, rng: np.random.Generator) -> Image.Image:
    """Noise that becomes `columns` x `rows` visual tokens."""
    shape = (rows * TOKEN_PIXELS, columns * TOKEN_PIXELS, 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
