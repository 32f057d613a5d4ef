"""Readings of tiny models, and what a row alone gives."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from data.strips.tiny_model import plain_logprobs
from stages.artifacts.problems import Problem
from stages.model.batches import encode_prompt, response_batch
from stages.model.prompts import policy_prompt


def noisy(width, height, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(vlm, question, *images):
    problem = Problem.asking(question, images)
    return encode_prompt(vlm, policy_prompt(vlm.processor, SimpleNamespace(instruction=""), problem))


def plain(vlm, readings, temperature):
    """Log-probs of each response, in a row alone."""
    for reading in readings:
        with torch.no_grad():
            yield plain_logprobs(vlm, response_batch(vlm, [reading.prompt], [reading.ids]), temperature=temperature)[0]


def assert_read_as_plain(vlm, reader, readings, temperature=0.7, atol=1e-5):
    with torch.no_grad():
        found = reader.read(readings, temperature=temperature)
    for row, (reading, expected_T) in enumerate(zip(readings, plain(vlm, readings, temperature), strict=True)):
        read_T = torch.zeros(found.read_BT.shape[1], dtype=torch.bool)
        read_T[: len(reading.ids)] = True if reading.read_T is None else torch.from_numpy(reading.read_T)
        assert torch.equal(found.read_BT[row], read_T)
        torch.testing.assert_close(
            found.logprobs_BT[row, read_T], expected_T[read_T[: len(expected_T)]], atol=atol, rtol=0
        )
        assert not found.logprobs_BT[row, ~read_T].any()
