"""Pictures to ask about."""

import numpy as np
from PIL import Image


def noisy(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
