"""No response may hold a token for pixels or one around them, however a family names it; all else may be sampled."""

import copy
from types import SimpleNamespace

import pytest
from transformers import AyaVisionConfig, AyaVisionProcessor, Glm4vConfig, Glm4vProcessor

from stages.model.loading import wrap_model
from stages.model.vision_tokens import is_visual, vision_ids

# Special tokens of published tokenizers: for pixels, and others.
FAMILIES = {
    "Qwen2.5-VL": (
        ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"],
        ["<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|box_start|>", "<|quad_end|>", "<|fim_prefix|>"],
    ),
    "InternVL": (["<img>", "</img>", "<IMG_CONTEXT>", "<video>"], ["<ref>", "</ref>", "<box>", "</box>", "<quad>"]),
    "GLM-4V": (
        ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"],
        ["<|user|>", "<|assistant|>", "<|observation|>", "<think>", "<|begin_of_box|>", "<|end_of_box|>", "[gMASK]"],
    ),
    "Aya Vision": (
        ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "<|IMG_PATCH|>", "TILE_1", "TILE_GLOBAL"],
        ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<BOS_TOKEN>"],
    ),
    "Gemma 3": (["<start_of_image>", "<end_of_image>", "<image_soft_token>"], ["<start_of_turn>", "<end_of_turn>"]),
    "SmolVLM": (
        ["<fake_token_around_image>", "<global-img>", "<row_1_col_2>", "<image>"],
        ["<end_of_utterance>", "<row>", "<|im_start|>"],
    ),
    "Pixtral": (["[IMG]", "[IMG_BREAK]", "[IMG_END]"], ["[INST]", "[/INST]", "[TOOL_CALLS]"]),
    "Llama 4": (
        ["<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|patch|>", "<|image|>"],
        ["<|eot|>", "<|header_start|>", "<|vision_reserved_special_token_7|>", "<|python_start|>"],
    ),
    "Kimi-VL": (["<|media_start|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>"], ["<|im_user|>", "[EOT]"]),
    "MiniCPM-V": (
        ["<image>", "</image>", "<slice>", "</slice>", "<image_id>"],
        ["<unit>", "<answer>", "<|tool_call|>"],
    ),
}


@pytest.fixture
def tokenizer_with(tiny_vlm):
    """A function: the tokenizer with these special tokens more, and their ids."""

    def make(texts):
        tokenizer = copy.deepcopy(tiny_vlm.tokenizer)
        tokenizer.add_tokens(texts, special_tokens=True)
        return tokenizer, dict(zip(texts, tokenizer.convert_tokens_to_ids(texts), strict=True))

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_told_by_their_texts(tokenizer_with, family):
    visual, other = FAMILIES[family]
    tokenizer, ids = tokenizer_with([*visual, *other])
    found = vision_ids(SimpleNamespace(), SimpleNamespace(tokenizer=tokenizer))
    assert {text for text, token in ids.items() if token in found} == set(visual)


def test_glm_4v_s_are_those_of_its_configuration_too(tiny_vlm, tokenizer_with):
    tokenizer, ids = tokenizer_with(["<|image|>", "<|video|>", "<a>", "<b>", "<c>", "<d>", "<think>"])
    config = Glm4vConfig(
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<a>"],
        image_end_token_id=ids["<b>"],
        video_start_token_id=ids["<c>"],
        video_end_token_id=ids["<d>"],
    )
    own = tiny_vlm.processor
    processor = Glm4vProcessor(own.image_processor, tokenizer, own.video_processor)
    qwen = set(vision_ids(SimpleNamespace(), own))
    assert vision_ids(config, processor) - qwen == set(ids.values()) - {ids["<think>"]}


def test_aya_s_are_those_of_its_processor_too(tiny_vlm, tokenizer_with):
    texts = ["<s-i>", "<e-i>", "<p>", "<b>", "<think>"]
    tokenizer, ids = tokenizer_with(texts)
    names = ("start_of_img_token", "end_of_img_token", "img_patch_token", "img_line_break_token")
    own = tiny_vlm.processor
    processor = AyaVisionProcessor(own.image_processor, tokenizer, **dict(zip(names, texts[:4], strict=True)))
    qwen = set(vision_ids(SimpleNamespace(), own))
    # Its image token stands in prompts alone: the tokenizer has none, nor words that tiles are written with.
    assert vision_ids(AyaVisionConfig(image_token_index=10**6), processor) - qwen == {ids[t] for t in texts[:4]} | {
        10**6
    }


def test_a_number_of_tokens_is_no_token_nor_is_an_ordinary_word(tiny_vlm):
    config = SimpleNamespace(num_image_tokens=7, image_token_divisor=8, image_seq_length=9, image_token_id=None)
    processor = SimpleNamespace(tokenizer=tiny_vlm.tokenizer, image_newline_token="\n", tile_token="The", img_size=11)
    own = vision_ids(SimpleNamespace(), SimpleNamespace(tokenizer=tiny_vlm.tokenizer))
    assert vision_ids(config, processor) == own == set(tiny_vlm.tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    ))  # fmt: skip


def test_an_end_token_is_never_banned_nor_an_id_that_the_model_lacks(tiny_vlm, copy_of):
    model = copy_of(tiny_vlm).model
    banned = wrap_model(model, tiny_vlm.processor).banned_ids
    model.config.image_end_token_id = 10**6
    assert wrap_model(model, tiny_vlm.processor).banned_ids == banned
    model.generation_config.eos_token_id = [banned[0], 2]
    assert wrap_model(model, tiny_vlm.processor).banned_ids == banned[1:]


@pytest.mark.parametrize("text", ["<|revision|>", "<|im_start|>", "<imagine>", "<think>", "<dispatch>", "<profile>"])
def test_words_that_only_hold_such_letters_are_not_meant(text):
    assert not is_visual(text)
