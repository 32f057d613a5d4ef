"""The counterfactual without visual input (eq. 3): the same problem on blank images and frames."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from stages.artifacts.problems import Problem

Blank = Literal["zeros", "noise"]


def without_image(problem: Problem, blank: Blank) -> Problem:
    """The problem with every image and every frame blanked at its own size, so that the token count does not change.

    Its `whole` is the problem itself: a judge sees the real images. Noise is drawn from the problem's id: the same
    problem always gets the same noise, another one in each frame.
    """
    digest = hashlib.sha256(problem.problem_id.encode()).digest()
    seed = int.from_bytes(digest[:8], "big")
    rng = np.random.default_rng(seed)
    images = tuple(_blank(image, blank, rng) for image in problem.images)
    video = problem.video
    if video is not None:
        video = replace(video, frames=_BlankFrames(video.frames, blank, seed))
    return replace(problem, images=images, video=video, whole=problem)


class _BlankFrames(Sequence[Image.Image]):
    """Blank frames, made each time they are looked at: a video's pixels are many."""

    def __init__(self, frames: Sequence[Image.Image], blank: Blank, seed: int) -> None:
        self._frames = frames
        self._blank: Blank = blank
        self._seed = seed

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: Any) -> Any:
        return _blank(self._frames[index], self._blank, np.random.default_rng((self._seed, index + 1)))


def _blank(image: Image.Image, blank: Blank, rng: np.random.Generator) -> Image.Image:
    shape = (image.height, image.width, 3)
    if blank == "zeros":
        return Image.fromarray(np.zeros(shape, np.uint8))
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
