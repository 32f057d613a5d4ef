"""Prompts and responses as the tensors a model takes.

Axes: B rows, S positions of a padded row, T positions of the longest response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from stages.model.codec import Codec
from stages.model.encoding import processed
from stages.model.loading import VisionLanguageModel
from stages.model.prompts import Prompt

_SECONDS = "second_per_grid_ts"
"""Positions are made from it: rounded to the model's type, it would move frames."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's token ids with every placeholder expanded, and its pixels."""

    ids: list[int]
    token_types: list[int]
    """0 text, 1 image, 2 video: multimodal rotary positions and attention within an image are made from them."""
    vision: dict[str, Tensor]


@dataclass(frozen=True)
class ResponseBatch:
    """Rows `[padding][prompt][response][padding]`: responses stand in the last T columns."""

    inputs: dict[str, Tensor]
    response_mask_BT: Tensor
    """Bool; True at response tokens, the end token included."""

    @property
    def response_ids_BT(self) -> Tensor:
        return self.inputs["input_ids"][:, -self.response_mask_BT.shape[1] :]


def encode_prompt(codec: Codec, prompt: Prompt) -> EncodedPrompt:
    """Expand the placeholders of images and video, and splice the given ids in.

    Raises:
        DataError: frames of a video that differ in size.
    """
    encoded = processed(codec.processor, prompt)
    ids = encoded.pop("input_ids")[0].tolist()
    encoded.pop("attention_mask")
    name = codec.encoding.token_types
    token_types = [0] * len(ids) if name is None else encoded.pop(name)[0].tolist()
    rest = list(prompt.spliced_ids)
    if prompt.tail:
        rest += codec.tokenizer(prompt.tail, add_special_tokens=False)["input_ids"]
    return EncodedPrompt(ids + rest, token_types + [0] * len(rest), encoded)


def fits(codec: Codec, prompt: EncodedPrompt, max_new_tokens: int) -> bool:
    """Whether the model has room for the whole prompt and `max_new_tokens` more."""
    return codec.max_length is None or len(prompt.ids) + max_new_tokens <= codec.max_length


def response_batch(
    vlm: VisionLanguageModel, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]
) -> ResponseBatch:
    """Pad rows of a prompt and its response each; rows may repeat a prompt."""
    longest = max(len(response) for response in responses)
    tails = [longest - len(response) for response in responses]
    lengths = torch.tensor([len(response) for response in responses], device=vlm.device)
    return ResponseBatch(
        inputs=_inputs(vlm, prompts, responses, tails),
        response_mask_BT=torch.arange(longest, device=vlm.device) < lengths[:, None],
    )


def prompt_batch(vlm: VisionLanguageModel, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """Left-padded prompts for generation."""
    return _inputs(vlm, prompts, [[]] * len(prompts), [0] * len(prompts))


def _inputs(
    vlm: VisionLanguageModel,
    prompts: Sequence[EncodedPrompt],
    responses: Sequence[Sequence[int]],
    tails: Sequence[int],
) -> dict[str, Tensor]:
    width = max(len(prompt.ids) for prompt in prompts)
    rows = [
        (width - len(prompt.ids), prompt, list(response), tail)
        for prompt, response, tail in zip(prompts, responses, tails, strict=True)
    ]
    columns: dict[str, Any] = {
        "input_ids": [[vlm.pad_id] * head + p.ids + r + [vlm.pad_id] * tail for head, p, r, tail in rows],
        "attention_mask": [[0] * head + [1] * (len(p.ids) + len(r)) + [0] * tail for head, p, r, tail in rows],
    }
    if vlm.encoding.token_types is not None:
        columns[vlm.encoding.token_types] = [
            [0] * head + p.token_types + [0] * (len(r) + tail) for head, p, r, tail in rows
        ]
    inputs = {name: torch.tensor(values, device=vlm.device) for name, values in columns.items()}
    return inputs | vision_inputs(vlm, prompts)


def vision_inputs(vlm: VisionLanguageModel, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """The prompts' images and videos on the model's device, one after the other."""
    inputs = {}
    for name in sorted({name for prompt in prompts for name in prompt.vision}):
        parts = [prompt.vision[name] for prompt in prompts if name in prompt.vision]
        value = _joined(parts, vlm.encoding.image_axes.get(name, 0))
        rounded = value.is_floating_point() and name != _SECONDS
        inputs[name] = value.to(vlm.device, vlm.model.dtype if rounded else None)
    return inputs


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """One after the other along an axis, along the others filled up with zeros to the size of the largest.

    As processors fill up the images of one prompt; the model cuts it off again by the images' sizes or masks.
    """
    largest = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    filled = []
    for part in parts:
        missing = [0 if i == axis else size - part.shape[i] for i, size in enumerate(largest)]
        filled.append(pad(part, [room for size in reversed(missing) for room in (0, size)]))
    return torch.cat(filled, dim=axis)
