"""What a model is asked: the policy's prompt, and the repair model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from transformers import InternVLVideoProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

from stages.artifacts.problems import Problem, Video
from stages.errors import DataError, ModelError
from stages.sections import PromptSection

# A private-use character that chat templates leave alone; the text is cut there and the draft's ids put in.
DRAFT_MARK = "\ue000"

_VIDEO_PROCESSORS = (Qwen2VLVideoProcessor, Qwen3VLVideoProcessor, InternVLVideoProcessor)
"""Others lay out several videos each in their own way."""

IMAGE_PLACEHOLDERS = ("image_token", "boi_token")
PLACEHOLDERS = (*IMAGE_PLACEHOLDERS, "video_token")
"""Names of a processor's texts that stand in a prompt for an image or a video, wherever in it they are written."""


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt. `text` holds one unexpanded placeholder an image, and one for the video.

    A prompt may go on with given token ids and then with `tail`: responses are never decoded and
    tokenised again on their way into a prompt.
    """

    text: str
    images: tuple[Image.Image, ...]
    spliced_ids: tuple[int, ...] = ()
    tail: str = ""
    video: Video | None = None


def check_chat_template(processor: Any) -> None:
    """Refuse a chat template that cannot be rendered, leaves out or repeats what it is given, or writes for an image or
    a video what the processor does not replace.

    Raises:
        ModelError: names the model.
    """
    texts = [_render(processor, images, None, DRAFT_MARK) for images in range(3)]
    for text in texts:
        if text.count(DRAFT_MARK) != 1:
            raise _bad_template(processor, f"writes a question {text.count(DRAFT_MARK)} times into the prompt")
    if texts[0] == texts[1]:
        raise _bad_template(processor, "leaves images out of the prompt")
    _check_placeholders(processor, texts)
    videos = _rendered(processor, [{"type": "video"}], DRAFT_MARK).count(
        getattr(processor, "video_token", None) or "\0"
    )
    if videos > 1:
        raise _bad_template(processor, f"writes {processor.video_token} {videos} times for one video")


def _check_placeholders(processor: Any, texts: Sequence[str]) -> None:
    """One of the processor's placeholders stands as often in the prompts as there are images, and it replaces that one.

    Families differ in which: `boi_token` where that is expanded to whole images, `image_token` elsewhere.
    """
    named = [text for name in IMAGE_PLACEHOLDERS if isinstance(text := getattr(processor, name, None), str)]
    counts = {placeholder: [text.count(placeholder) for text in texts] for placeholder in named}
    if named and [0, 1, 2] not in counts.values():
        told = "; ".join(f"{name} {', '.join(map(str, found))} times" for name, found in counts.items())
        raise _bad_template(processor, f"writes for none, one and two images {told}")


def policy_prompt(processor: Any, style: PromptSection, problem: Problem) -> Prompt:
    """`x`: the images, the video and the question, rendered by the model's own chat template.

    Raises:
        ModelError: there is a video, and the model takes none; its chat template cannot be rendered.
    """
    return _asked(processor, problem, problem.question, style.instruction)


def answer_prompt(processor: Any, style: PromptSection, problem: Problem) -> Prompt:
    """`(x, y*)`: the policy's prompt with the reference answer behind the question, in the recipe's words for it.

    Raises:
        ModelError: as `policy_prompt`.
    """
    shown = style.reference_instruction.replace("{reference}", problem.answer)
    return _asked(processor, problem, problem.question, shown, style.instruction)


def repair_prompt(
    processor: Any,
    style: PromptSection,
    problem: Problem,
    draft_ids: Sequence[int],
    reference: str | None,
    *,
    is_response: bool = False,
) -> Prompt:
    """`(x, y, r)`: the problem, the draft's token ids without their end token, and the reference unless withheld.

    The reference is an answer, or a whole response where `is_response`.

    Raises:
        DataError: the question or the reference holds the character that stands for the draft.
        ModelError: there is a video, and the model takes none; its chat template cannot be rendered.
    """
    parts = [problem.question, style.repair_instruction, DRAFT_MARK]
    if reference is not None:
        instruction = style.response_reference_instruction if is_response else style.reference_instruction
        parts.append(instruction.replace("{reference}", reference))
    for name, text in (("question", problem.question), ("reference", reference or "")):
        if DRAFT_MARK in text:
            raise DataError(f"{name} {text[:60]!r} holds the private-use character U+E000; take it out")
    asked = _asked(processor, problem, *parts)
    head, tail = asked.text.split(DRAFT_MARK)
    return replace(asked, text=head, spliced_ids=tuple(draft_ids), tail=tail)


def placeholders(processor: Any) -> tuple[str, ...]:
    """Texts that the processor replaces by an image or a video, and fails where there is none for them."""
    found = (getattr(processor, name, None) for name in PLACEHOLDERS)
    return tuple(text for text in found if isinstance(text, str))


def can_be_reference(processor: Any, response: str) -> bool:
    """Whether a sampled response can stand in a repair prompt: a model may spell out what a prompt has a use for."""
    return not any(mark in response for mark in (DRAFT_MARK, *placeholders(processor)))


def continuation_prompt(prompt: Prompt, response_ids: Sequence[int]) -> Prompt:
    """The policy's prompt with the beginning of a response, to be gone on with."""
    return replace(prompt, spliced_ids=tuple(response_ids))


def _asked(processor: Any, problem: Problem, *parts: str) -> Prompt:
    """What there is to look at, and behind it those of the parts that are not empty, a line each."""
    text = "\n".join(part for part in parts if part)
    rendered = _render(processor, len(problem.images), problem.video, text)
    return Prompt(rendered, tuple(problem.images), video=problem.video)


def _render(processor: Any, images: int, video: Video | None, text: str) -> str:
    content = [{"type": "image"} for _ in range(images)] + [{"type": "video"} for _ in [video] if video]
    rendered = _rendered(processor, content, text)
    if video is not None and not _takes_video(processor, rendered):
        raise ModelError(
            f"{video.place}: it has a video, and {type(processor).__name__} with its chat template takes none; "
            "take a model for videos, or give the frames as images"
        )
    return rendered


def _rendered(processor: Any, content: Sequence[dict[str, str]], text: str) -> str:
    try:
        rendered: str = processor.apply_chat_template(
            [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
    except Exception as error:  # whatever it makes Jinja raise
        raise _bad_template(processor, f"cannot be rendered ({' '.join(str(error).split())[:200]})") from error
    return rendered


def _bad_template(processor: Any, reason: str) -> ModelError:
    return ModelError(
        f"{processor.tokenizer.name_or_path}: its chat template {reason}; save the model's own chat_template.jinja "
        "beside the weights"
    )


def _takes_video(processor: Any, rendered: str) -> bool:
    """Whether it prepares videos one after the other, and the template put the placeholder of one into the text."""
    token = getattr(processor, "video_token", None)
    video_processor = getattr(processor, "video_processor", None)
    return isinstance(video_processor, _VIDEO_PROCESSORS) and token is not None and token in rendered
