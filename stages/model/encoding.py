"""What a family's processor makes of a prompt, told by what it makes of made-up ones.

Families name and lay out their tensors each in their own way: pixels image after image (Qwen), or prompt after prompt
and in each image after image (Idefics); what a token stands for under one of two names, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from transformers.video_utils import VideoMetadata

from stages.artifacts.problems import Problem, Video
from stages.errors import ModelError
from stages.model.prompts import Prompt, policy_prompt
from stages.sections import PromptSection

_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""0 for a token of text, 1 for one of an image; the second name is Gemma 3's."""
_TEXT = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Encoding:
    """How a processor's tensors of one prompt become those of several."""

    token_types: str | None
    """The input that tells which tokens are of images; None where the model needs none."""
    image_axes: Mapping[str, int]
    """Along which axis the images of an input follow one another; 0 where it has an entry for each prompt."""


def processed(processor: Any, prompt: Prompt) -> dict[str, Tensor]:
    """The processor's tensors of one prompt up to its spliced ids, every placeholder expanded.

    Raises:
        DataError: frames of a video that differ in size.
    """
    return dict(
        processor(
            # Nested, as chat templates hand them over: else LLaVA-OneVision takes each for a prompt's only one.
            images=[list(prompt.images)] if prompt.images else None,
            text=[prompt.text],
            return_tensors="pt",
            add_special_tokens=False,
            **({} if prompt.video is None else _video_arguments(prompt.video)),
        )
    )


def find_encoding(processor: Any) -> Encoding:
    """Look at what the processor makes of prompts without an image, with one and with two.

    Raises:
        ModelError: it cannot read one of them; it gives more for each token than its type, as Mllama's does.
    """
    _, one, two = (_trial(processor, images) for images in range(3))
    by_token = [name for name in one if _is_by_token(name, one) and _is_by_token(name, two)]
    types = [name for name in by_token if name in _TOKEN_TYPES and one[name].any()]
    for name in by_token:
        if name not in (*_TEXT, *types):
            raise ModelError(
                f"{processor.tokenizer.name_or_path}: its {type(processor).__name__} gives each token of a prompt a "
                f"{name}, and a response's have none; take another model"
            )
    axes = {name: _image_axis(one[name], two[name]) for name in one if name not in by_token}
    return Encoding(token_types=types[0] if types else None, image_axes=axes)


def _trial(processor: Any, images: int) -> dict[str, Tensor]:
    shown = [Image.new("RGB", (64, 64)) for _ in range(images)]
    prompt = policy_prompt(processor, PromptSection(), Problem.asking("What is seen here?", shown))
    try:
        return processed(processor, prompt)
    except Exception as error:  # whatever it makes the processor raise
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{processor.tokenizer.name_or_path}: its {type(processor).__name__} cannot read what its chat template "
            f"writes for a prompt with {images} images ({reason}); save the model's own chat_template.jinja beside the "
            "weights, or take another model"
        ) from error


def _is_by_token(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether it has an entry for each token of the one prompt."""
    return tensors[name].shape[:2] == tensors["input_ids"].shape


def _image_axis(one: Tensor, two: Tensor) -> int:
    """Along which two images are more than one."""
    return next((axis for axis, sizes in enumerate(zip(one.shape, two.shape, strict=True)) if sizes[0] != sizes[1]), 0)


def _video_arguments(video: Video) -> dict[str, Any]:
    """What a processor is given with a video, so that it takes every frame and knows when it was."""
    frames = video.decoded()
    metadata = VideoMetadata(len(frames), video.fps, frames_indices=list(range(len(frames))))
    return {"videos": [frames], "video_metadata": [metadata], "do_sample_frames": False}
