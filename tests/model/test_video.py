"""Videos: what a model is given of one, where its tokens stand, and that packed, plain and sampled log-probs agree.

Axes: A position axes, L tokens of a row, T tokens of a response, V vocabulary.
"""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.strips.tiny_model import CHAT_TEMPLATE
from readings import assert_read_as_plain, noisy
from stages.artifacts.problems import Problem, Video
from stages.engines.decoding import Decoder, Numbered
from stages.engines.plain_generate import PlainGenerate
from stages.engines.protocol import Request, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import ModelError
from stages.model.batches import encode_prompt, prompt_batch
from stages.model.layout import Reading, packed_layout, padded_layout, prompt_positions
from stages.model.loading import wrap_model
from stages.model.logprobs import LogprobReader
from stages.model.prompts import policy_prompt, repair_prompt
from stages.sections import PromptSection

STYLE = SimpleNamespace(instruction="")
TOKENS_PER_SECOND = 4  # the tiny model's, transformers' default


def film(frames, *, width=56, height=56, fps=2.0, seed=0):
    return Video([noisy(width, height, 100 * seed + index) for index in range(frames)], fps, "problem p")


def prompt(vlm, question="Why?", images=(), video=None):
    return policy_prompt(vlm.processor, STYLE, Problem.asking(question, images, video))


def encode(vlm, *args, **kwargs):
    return encode_prompt(vlm, prompt(vlm, *args, **kwargs))


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_internvl"])
def vlm(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def mixed(vlm):
    """Prompts with an odd number of frames, with images and a video, with images, with text alone."""
    return [
        prompt(vlm, "What then?", video=film(5, fps=3.0)),
        prompt(vlm, images=[noisy(84, 28, 1), noisy(56, 56, 2)], video=film(4, width=84, fps=10.0, seed=1)),
        prompt(vlm, "Which is it, and why?", images=[noisy(56, 84, 3)]),
        prompt(vlm, "What is the sum?"),
        prompt(vlm, "What then?", video=film(5, fps=0.5, seed=2)),
    ]


@pytest.mark.parametrize(("frames", "pairs"), [(1, 1), (2, 1), (5, 3), (6, 3)])
def test_every_two_frames_are_a_grid_of_tokens(tiny_vlm, frames, pairs):
    """56 by 84 pixels are 2 by 3 tokens; all frames are there, and an odd last one stands twice."""
    encoded = encode(tiny_vlm, video=film(frames, width=84))
    assert encoded.ids.count(tiny_vlm.model.config.video_token_id) == encoded.token_types.count(2) == pairs * 6
    assert encoded.vision["video_grid_thw"].tolist() == [[pairs, 4, 6]]
    # Grids do not depend on each other, and one of two equal frames is that of an image.
    pictures = film(frames, width=84).frames
    for index, grid in enumerate(encoded.vision["pixel_values_videos"].chunk(pairs)):
        first, second = pictures[2 * index], pictures[min(2 * index + 1, frames - 1)]
        for half, picture in enumerate((first, second)):
            image = encode(tiny_vlm, images=[picture]).vision["pixel_values"]
            # A patch is channels, two times, rows, columns.
            found, expected = (patches.view(-1, 3, 2, 14 * 14)[:, :, half] for patches in (grid, image))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_frame_is_read_as_the_image_that_it_is(tiny_vlm):
    picture = noisy(84, 56, 5)
    ids = [[20, 21, 22, 23]]
    readings = [
        Reading(encode(tiny_vlm, images=[picture]), *ids),
        Reading(encode(tiny_vlm, video=Video([picture, picture], 2.0, "p")), *ids),
        Reading(encode(tiny_vlm, video=film(2, width=84)), *ids),
    ]
    with torch.no_grad():
        as_image, as_video, other = LogprobReader(tiny_vlm).read(readings, temperature=1.0).logprobs_BT
    torch.testing.assert_close(as_video, as_image, atol=1e-5, rtol=0)
    assert (other - as_image).abs().max() > 1e-2


def test_no_frame_is_left_out_by_a_processor_that_samples(tiny_vlm):
    """Checkpoints may say `do_sample_frames`: at 2 frames a second, 3 of these 12 would be left."""
    processor = copy.copy(tiny_vlm.processor)
    processor.video_processor = copy.copy(processor.video_processor)
    processor.video_processor.do_sample_frames, processor.video_processor.fps = True, 2.0
    video = film(12, fps=8.0)
    found, expected = (encode(vlm, video=video) for vlm in (replace(tiny_vlm, processor=processor), tiny_vlm))
    assert found.ids == expected.ids
    assert found.vision.keys() == expected.vision.keys()
    assert all(found.vision[name].equal(expected.vision[name]) for name in expected.vision)


def test_images_stand_before_the_video_and_both_before_the_question(tiny_vlm):
    found = prompt(tiny_vlm, images=[noisy(28, 28, 0)], video=film(2))
    assert found.text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>Why?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_repair_prompt_holds_the_video_and_the_draft_s_ids(tiny_vlm):
    video = film(3)
    style = PromptSection(instruction="", repair_instruction="Repair this draft:", reference_instruction="{reference}")
    problem = Problem.asking("Why?", (), video)
    repair = encode_prompt(tiny_vlm, repair_prompt(tiny_vlm.processor, style, problem, [20, 21], None))
    asked = encode(tiny_vlm, "Why?\nRepair this draft:\n", video=video)
    assert repair.vision["pixel_values_videos"].equal(asked.vision["pixel_values_videos"])
    end = asked.ids.index(tiny_vlm.end_ids[0])
    assert repair.ids[: end + 2] == [*asked.ids[:end], 20, 21]


def without_video_processor(processor):
    processor.video_processor = None


def without_video_in_template(processor):
    processor.chat_template = CHAT_TEMPLATE.replace("<|vision_start|><|video_pad|><|vision_end|>", "")


@pytest.mark.parametrize("change", [without_video_processor, without_video_in_template])
def test_a_model_without_video_is_refused_with_the_problem(tiny_vlm, change):
    processor = copy.copy(tiny_vlm.processor)
    change(processor)
    blind = replace(tiny_vlm, processor=processor)
    assert encode(blind, images=[noisy(28, 28, 0)]).ids
    with pytest.raises(ModelError, match=r"problem p: it has a video, and Qwen2_5_VLProcessor .*takes none; take a"):
        prompt(blind, video=film(2))


def positions(tokens):
    """Positions (A, L) by hand: `tokens` are runs of text, and the time, rows, columns of an image or a video."""
    columns, start = [], 0
    for run in tokens:
        if isinstance(run, int):
            columns += [(start + i,) * 3 for i in range(run)]
        else:
            times, rows, width = run
            columns += [
                (start + time, start + row, start + column)
                for time in times
                for row in range(rows)
                for column in range(width)
            ]
        start = max(max(column) for column in columns) + 1
    return torch.tensor(columns).T


@pytest.fixture
def seen_positions(tiny_vlm):
    """Positions (A, B, L) that the text model is given, call by call."""
    seen = []
    hook = tiny_vlm.model.get_decoder().rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append([*args, *kwargs.values()][1]), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize(
    ("fps", "times"),
    [
        (2.0, (0, 4, 8)),  # a grid of two frames lasts 1 s, and a second is 4 positions long
        (8.0, (0, 1, 2)),
        (3.0, (0, 2, 5)),  # 2/3 s: 2.67 positions
        (0.5, (0, 16, 32)),
        (30.0, (0, 0, 0)),
    ],
)
@torch.no_grad()
def test_tokens_stand_at_their_frames_times_and_text_behind_the_last(tiny_vlm, seen_positions, fps, times):
    """In packed rows, plain rows and while sampling, by either loop: two rows in transformers', one has padding."""
    assert tiny_vlm.model.config.vision_config.tokens_per_second == TOKENS_PER_SECOND
    texts = [prompt(tiny_vlm, images=[noisy(56, 28, 0)], video=film(5, width=84, fps=fps)), prompt(tiny_vlm)]
    encoded = encode_prompt(tiny_vlm, texts[0])
    before = encoded.token_types.index(1)
    behind = encoded.token_types[::-1].index(2)
    # Between image and video the end of the one and the start of the other.
    runs = [before, ((0,), 1, 2), 2, (times, 2, 3), behind]
    row_AL = positions([*runs, 3])
    reading = Reading(encoded, [20, 21, 22, 23])
    assert torch.equal(packed_layout(tiny_vlm, [reading]).inputs["position_ids"][:, 0], row_AL)
    tiny_vlm.model(**padded_layout(tiny_vlm, [reading]).inputs, use_cache=False)
    (plain_ABL,) = seen_positions
    assert torch.equal(plain_ABL[-3:, 0], row_AL)
    seen_positions.clear()
    requests = [Numbered(number, Request(text)) for number, text in enumerate(texts)]
    Decoder(tiny_vlm, rows=1, prompt_tokens=1, draft_block=None).generate(requests, Sampling(4, 1.0, seed=0))
    decoded_AL = torch.cat(seen_positions, dim=-1)[-3:, 0]  # the longer prompt is the first
    assert torch.equal(decoded_AL[:, : row_AL.shape[1]], row_AL)
    seen_positions.clear()
    PlainGenerate(tiny_vlm, rows=2).generate(requests, Sampling(4, 1.0, seed=0))
    sampled_ABL = torch.cat(seen_positions, dim=-1)[-3:, :, : row_AL.shape[1]]
    assert sum(torch.equal(row_AL, sampled_ABL[:, row]) for row in range(2)) == 1


@pytest.fixture
def tiny_qwen2_vl(tiny_vlm):
    """The first Qwen2-VL, with the same tokens; a grid of two frames is one position long whatever its rate."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    own = tiny_vlm.model.config
    text = own.text_config.to_dict() | {"hidden_size": 64}
    text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 4, "hidden_size": 64, "mlp_ratio": 2}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: getattr(own, name) for name in names}
    config = Qwen2VLConfig(
        text_config={name: value for name, value in text.items() if name != "model_type"}, vision_config=vision, **ids
    )
    parts = tiny_vlm.processor
    processor = Qwen2VLProcessor(parts.image_processor, parts.tokenizer, parts.video_processor, CHAT_TEMPLATE)
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tiny_vlm.end_ids[0]
    return wrap_model(model, processor)


def test_qwen2_vl_reads_videos_too(tiny_qwen2_vl):
    encoded = encode(tiny_qwen2_vl, images=[noisy(56, 28, 0)], video=film(9, width=84))
    before = encoded.token_types.index(1)
    behind = encoded.token_types[::-1].index(2)
    row_AL = positions([before, ((0,), 1, 2), 2, (range(5), 2, 3), behind])
    assert torch.equal(prompt_positions(tiny_qwen2_vl, encoded), row_AL)
    readings = [Reading(encoded, [20, 21, 22]), Reading(encoded, [20, 30, 31])]
    assert_read_as_plain(tiny_qwen2_vl, LogprobReader(tiny_qwen2_vl), readings)


def test_seconds_are_not_rounded_to_the_weights_type(tiny_vlm, copy_of):
    own = copy_of(tiny_vlm)
    own.model.to(torch.bfloat16)
    inputs = prompt_batch(own, [encode(own, video=film(3, fps=3.0))])
    assert inputs["pixel_values_videos"].dtype == torch.bfloat16
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([2 / 3], abs=1e-6)


def test_a_copy_s_positions_are_its_own(tiny_vlm, copy_of):
    own = copy_of(tiny_vlm)
    own.model.config.vision_config.tokens_per_second = 2
    found = packed_layout(own, [Reading(encode(own, video=film(4, fps=2.0)), [20])]).inputs["position_ids"]
    expected = packed_layout(tiny_vlm, [Reading(encode(tiny_vlm, video=film(4, fps=4.0)), [20])])
    assert torch.equal(found, expected.inputs["position_ids"])


def test_packed_logprobs_are_those_of_a_row_alone(vlm, mixed):
    reader = LogprobReader(vlm)
    assert reader.packed
    encoded = [encode_prompt(vlm, text) for text in mixed]
    only = np.array([0, 1, 0, 1], bool)
    readings = [
        *(Reading(one, [20, 21, 22, 23]) for one in encoded),
        *(Reading(one, [20, 21, 30]) for one in encoded[::-1]),
        Reading(encoded[1], [40, 41, 42, 43], only),
    ]
    assert_read_as_plain(vlm, reader, readings)


def plain_logprobs(vlm, text, ids, temperature):
    """One unpadded row, the processor called by hand."""
    videos = {}
    if text.video is not None:
        frames = list(text.video.frames)
        metadata = {"total_num_frames": len(frames), "fps": text.video.fps, "frames_indices": list(range(len(frames)))}
        videos = {"videos": [frames], "video_metadata": [metadata]}
    inputs = dict(vlm.processor(images=list(text.images) or None, text=[text.text], return_tensors="pt", **videos))
    behind = {"input_ids": ids, "attention_mask": [1] * len(ids), "mm_token_type_ids": [0] * len(ids)}
    for name in behind.keys() & inputs.keys():
        inputs[name] = torch.cat([inputs[name], torch.tensor([behind[name]])], dim=1)
    with torch.no_grad():
        logits_TV = vlm.model(**inputs, use_cache=False).logits[0, -len(ids) - 1 : -1] / temperature
    logits_TV[:, list(vlm.banned_ids)] = float("-inf")
    return [logits_V[token].item() for logits_V, token in zip(logits_TV.log_softmax(-1), ids, strict=True)]


def test_sampler_logprobs_are_those_of_a_plain_forward(vlm, mixed):
    groups = TransformersEngine(vlm, rows_per_batch=4).generate(
        [Request(text, 2) for text in mixed], Sampling(6, 0.7, 1)
    )
    for text, group in zip(mixed, groups, strict=True):
        for completion in group:
            expected = plain_logprobs(vlm, text, completion.ids, 0.7)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def test_tokens_of_a_video_are_never_sampled(tiny_vlm):
    names = ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    assert set(tiny_vlm.tokenizer.convert_tokens_to_ids(names)) <= set(tiny_vlm.banned_ids)


def test_gradients_reach_the_vision_tower_through_the_video(tiny_vlm, copy_of):
    """And are those of plain rows."""
    own = copy_of(tiny_vlm)
    reader = LogprobReader(own)
    weight = own.model.base_model.visual.patch_embed.proj.weight
    one, other = encode(own, video=film(5)), encode(own, images=[noisy(56, 56, 7)], video=film(2, seed=1))
    readings = [Reading(one, [20, 21, 22]), Reading(one, [20, 30, 31]), Reading(other, [20, 21])]

    def gradient(packed):
        reader.packed = packed
        own.model.zero_grad()
        reader.read(readings, temperature=1.0).logprobs_BT.sum().backward()
        return weight.grad.clone()

    packed, plain = gradient(True), gradient(False)
    assert plain.norm() > 1e-3
    assert (packed - plain).norm() < 1e-5 * plain.norm()
