"""A tiny, untrained InternVL: a second architecture with its own processor, tiling and placeholders."""

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from stages.model.loading import load_model, wrap_model

SPECIAL = {"start_image_token": "<img>", "end_image_token": "</img>"}
SPECIAL |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% elif part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def tiny_internvl(tokenizer, folder):
    """Made and loaded from `folder`. Tiles are 28 by 28 pixels, each one visual token; a wide image has several and a
    thumbnail."""
    tokenizer.save_pretrained(folder)
    tokenizer = type(tokenizer).from_pretrained(folder, extra_special_tokens=SPECIAL)
    text_config = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # of 32 columns: vLLM on a CPU takes no fewer
        "num_key_value_heads": 1,
        "initializer_range": 0.1,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision_config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
        "initializer_range": 0.1,
    }
    config = InternVLConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size={"height": 28, "width": 28}),
        image_seq_length=1,
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    wrap_model(InternVLForConditionalGeneration(config).eval(), processor).save(folder)
    return load_model(folder)
