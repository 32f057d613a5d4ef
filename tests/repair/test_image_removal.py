"""The counterfactual image: blank, and of the same size in pixels and in tokens."""

from dataclasses import replace

import numpy as np
import pytest

from stages.artifacts.problems import Video
from stages.model.batches import encode_prompt
from stages.model.prompts import policy_prompt
from stages.repair.image_removal import without_image


@pytest.mark.parametrize("blank", ["zeros", "noise"])
def test_nothing_but_the_pixels_changes(problems, tiny_vlm, recipe, blank):
    problem = replace(problems[0], images=problems[0].images + problems[1].images)
    blanked = without_image(problem, blank)
    assert replace(blanked, images=()) == replace(problem, images=())

    def encoded(problem):
        return encode_prompt(tiny_vlm, policy_prompt(tiny_vlm.processor, recipe.prompt, problem))

    assert [(image.size, image.mode) for image in blanked.images] == [(i.size, i.mode) for i in problem.images]
    assert encoded(blanked).ids == encoded(problem).ids
    assert not encoded(blanked).vision["pixel_values"].equal(encoded(problem).vision["pixel_values"])


@pytest.mark.parametrize("blank", ["zeros", "noise"])
def test_every_frame_of_a_video_is_blanked(problems, tiny_vlm, recipe, blank):
    strips = [problem.images[0] for problem in problems if problem.images[0].width == 112][:3]
    problem = replace(problems[0], video=Video(strips, 4.0, "p"))
    blanked = without_image(problem, blank)
    assert blanked.video.fps == 4.0
    frames = blanked.video.decoded()
    assert [(frame.size, frame.mode) for frame in frames] == [(strip.size, strip.mode) for strip in strips]
    if blank == "zeros":
        assert not np.asarray(frames).any()
    else:
        assert len({frame.tobytes() for frame in (*frames, *blanked.images)}) == 4
        assert [frame.tobytes() for frame in blanked.video.decoded()] == [frame.tobytes() for frame in frames]

    def encoded(problem):
        prompt = policy_prompt(tiny_vlm.processor, recipe.prompt, problem)
        return encode_prompt(tiny_vlm, prompt)

    before, after = encoded(problem), encoded(blanked)
    assert before.ids == after.ids
    for name in ("pixel_values", "pixel_values_videos"):
        assert before.vision[name].shape == after.vision[name].shape
        assert not before.vision[name].equal(after.vision[name])
    assert before.vision["second_per_grid_ts"].equal(after.vision["second_per_grid_ts"])


def test_zeros_are_black(problems):
    (image,) = without_image(problems[0], "zeros").images
    assert not np.asarray(image).any()


def test_noise_is_the_problem_s_own(problems):
    two = replace(problems[0], images=problems[0].images * 2)
    first, second = (np.asarray(image) for image in without_image(two, "noise").images)
    assert np.ptp(first) > 200
    assert (first != second).any()
    again, _ = without_image(two, "noise").images
    assert (np.asarray(again) == first).all()
    (other,) = without_image(replace(problems[0], problem_id="other"), "noise").images
    assert (np.asarray(other) != first).any()
