"""The counterfactual without visual input (eq. 3): the same problem on a blank image."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Literal

import numpy as np
from PIL import Image

from stages.artifacts.problems import Problem

Blank = Literal["zeros", "noise"]


def without_image(problem: Problem, blank: Blank) -> Problem:
    """The problem with every image blanked at its own size, so that the token count does not change.

    Noise is drawn from the problem's id: the same problem always gets the same noise.
    """
    digest = hashlib.sha256(problem.problem_id.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return replace(problem, images=tuple(_blank(image, blank, rng) for image in problem.images))


def _blank(image: Image.Image, blank: Blank, rng: np.random.Generator) -> Image.Image:
    shape = (image.height, image.width, 3)
    if blank == "zeros":
        return Image.fromarray(np.zeros(shape, np.uint8))
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
