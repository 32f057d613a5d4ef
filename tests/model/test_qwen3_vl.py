"""Qwen3-VL in packed rows: interleaved rotary positions and DeepStack's features are those of the right tokens.

Axes: A time, height and width; L tokens of the row, D columns of a head, H hidden size.
"""

import math

import pytest
import torch

from readings import encode, noisy
from stages.model.layout import Reading, packed_layout
from stages.model.loading import load_model
from tiny_families import FAMILIES, make

SIDE = 32
"""Pixels of a visual token."""
SECTIONS = (4, 2, 2)
"""Frequencies of the tiny model that turn with time, height and width."""


@pytest.fixture(scope="module")
def vlm(tiny_vlm, tmp_path_factory):
    return load_model(make(FAMILIES["Qwen3-VL"], tiny_vlm.tokenizer, tmp_path_factory.mktemp("qwen3")))


@pytest.fixture(scope="module")
def images():
    """Of 3 rows by 2 columns, 1 by 3 and 2 by 1 visual tokens."""
    return [noisy(2 * SIDE, 3 * SIDE, 0), noisy(3 * SIDE, SIDE, 1), noisy(SIDE, 2 * SIDE, 2)]


@pytest.fixture(scope="module")
def readings(vlm, images):
    """Two responses with one beginning behind a prompt with two images, and one behind a prompt with one."""
    two, one = encode(vlm, "Which?", *images[:2]), encode(vlm, "Why?", images[2])
    return [Reading(two, [20, 21, 22]), Reading(two, [20, 30, 31]), Reading(one, [25, 26])]


def counted(prompt, grids):
    """Positions (A, tokens) of a prompt by hand: text one by one, an image's tokens by their place in it."""
    columns, start, left = [], 0, iter(grids)
    kinds = iter(prompt.token_types)
    for kind in kinds:
        if kind == 0:
            columns.append((start,) * 3)
            start += 1
            continue
        rows, width = next(left)
        columns += [(start, start + row, start + column) for row in range(rows) for column in range(width)]
        for _ in range(rows * width - 1):
            assert next(kinds) == 1
        start += max(rows, width)
    return columns, start


def row_positions(readings):
    """Of the packed row: each prompt from 0 on, what responses share once, branches at the same positions."""
    two, behind_two = counted(readings[0].prompt, [(3, 2), (1, 3)])
    one, behind_one = counted(readings[2].prompt, [(2, 1)])
    branches = [(behind_two,) * 3, (behind_two + 1,) * 3, (behind_two + 1,) * 3]
    return torch.tensor([*two, *branches, *one, (behind_one,) * 3]).T


@torch.no_grad()
def test_rotary_frequencies_turn_with_time_height_and_width_in_turns(vlm, readings):
    """Qwen3-VL, arXiv 2511.21631: T H W T H W ..., what is left of the frequencies with time."""
    layout = packed_layout(vlm, readings)
    position_AL = row_positions(readings)
    assert torch.equal(layout.inputs["position_ids"][:, 0], position_AL)
    seen = []
    hook = vlm.model.get_decoder().rotary_emb.register_forward_hook(lambda _, __, output: seen.append(output))
    vlm.model.base_model(**layout.inputs, use_cache=False)
    hook.remove()
    ((cos_1LD, sin_1LD),) = seen
    half = sum(SECTIONS)
    for token, position_A in enumerate(position_AL.T.tolist()):
        for frequency in range(half):
            axis = frequency % 3 if frequency < 3 * SECTIONS[frequency % 3] else 0
            angle = position_A[axis] / 10000.0 ** (frequency / half)
            for column in (frequency, frequency + half):
                assert cos_1LD[0, token, column].item() == pytest.approx(math.cos(angle), abs=1e-5)
                assert sin_1LD[0, token, column].item() == pytest.approx(math.sin(angle), abs=1e-5)


@torch.no_grad()
def test_deepstack_adds_an_image_s_features_to_its_own_tokens(vlm, images, readings):
    """DeepStack, arXiv 2406.04334: behind each of the first layers, features of a layer of the vision tower."""
    layout = packed_layout(vlm, readings)
    layers = vlm.model.get_decoder().layers
    after, before = [], []
    hooks = [layers[0].register_forward_hook(lambda _, __, output: after.append(output))]
    hooks.append(layers[1].register_forward_pre_hook(lambda _, args: before.append(args[0])))
    vlm.model.base_model(**layout.inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    added_LH = (before[0] - after[0])[0]
    is_image_L = layout.inputs["input_ids"][0] == vlm.model.config.image_token_id
    assert not added_LH[~is_image_L].any()
    own = []
    for image in images:  # the tower sees each by itself
        pixels = vlm.processor.image_processor(images=[image], return_tensors="pt")
        own.append(vlm.model.model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]))
    expected_VH = torch.cat([output.deepstack_features[0] for output in own])
    assert len(expected_VH) == 6 + 3 + 2
    torch.testing.assert_close(added_LH[is_image_L], expected_VH, atol=1e-5, rtol=0)
    assert expected_VH.abs().mean() > 0.01
