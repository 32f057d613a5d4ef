"""Vision towers attend to the windows of one length at once, and give what they gave one by one."""

import copy

import pytest
import torch

from readings import noisy
from stages.model import window_attention
from stages.model.batches import encode_prompt, prompt_batch
from stages.model.loading import wrap_model
from stages.model.prompts import Prompt

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture
def windowed(tiny_vlm):
    """A model whose first block sees windows of two by two visual tokens, and its twin with transformers' attention."""
    config = copy.deepcopy(tiny_vlm.model.config)
    config.vision_config.fullatt_block_indexes = [1]
    config.vision_config.window_size = 56
    config._attn_implementation = "sdpa"
    torch.manual_seed(3)
    own = type(tiny_vlm.model)(config).eval()
    twin = copy.deepcopy(own)
    return wrap_model(own, tiny_vlm.processor), twin


def gradients(model, inputs):
    model.zero_grad()
    features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    features = torch.cat(features)
    features.square().sum().backward()
    return features.detach(), torch.cat([p.grad.flatten() for p in model.model.visual.parameters()])


def test_windows_of_unequal_lengths_give_the_features_and_gradients_of_transformers(windowed, monkeypatch):
    vlm, twin = windowed
    # 3 x 4, 1 x 3 and 2 x 2 visual tokens: windows of 16, 8 and 4 patches, images of 48, 12 and 16.
    images = noisy(112, 84, 0), noisy(84, 28, 1), noisy(56, 56, 2)
    prompt = encode_prompt(vlm, Prompt(IMAGE * 3, images))
    inputs = prompt_batch(vlm, [prompt])
    calls = []
    own = window_attention.scaled_dot_product_attention
    monkeypatch.setattr(
        window_attention,
        "scaled_dot_product_attention",
        lambda query, *rest, **settings: (calls.append(query.shape[0]), own(query, *rest, **settings))[1],
    )
    features, gradient = gradients(vlm.model, inputs)
    twin_features, twin_gradient = gradients(twin, inputs)
    torch.testing.assert_close(features, twin_features, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, twin_gradient, rtol=1e-4, atol=1e-5)
    assert len(calls) == 6  # three lengths of windows in the first block, three of images in the second
    assert sum(calls) > 6


def test_a_tower_without_windows_keeps_its_own_attention(tiny_internvl):
    kinds = {getattr(tiny_internvl.model.config, name)._attn_implementation for name in ("vision_config",)}
    assert kinds == {"sdpa"}
