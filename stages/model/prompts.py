"""What a model is asked: the policy's prompt, and the repair model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from stages.errors import DataError
from stages.recipe import PromptSection

# A private-use character that chat templates leave alone; the text is cut there and the draft's ids put in.
_DRAFT_MARK = "\ue000"


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt. `text` holds one unexpanded placeholder an image.

    A prompt may go on with given token ids and then with `tail`: responses are never decoded and
    tokenised again on their way into a prompt.
    """

    text: str
    images: tuple[Image.Image, ...]
    spliced_ids: tuple[int, ...] = ()
    tail: str = ""


def policy_prompt(processor: Any, style: PromptSection, question: str, images: Sequence[Image.Image]) -> Prompt:
    """`x`: the images and the question, rendered by the model's own chat template."""
    return Prompt(_render(processor, images, _join(question, style.instruction)), tuple(images))


def repair_prompt(
    processor: Any,
    style: PromptSection,
    question: str,
    images: Sequence[Image.Image],
    draft_ids: Sequence[int],
    reference: str | None,
    *,
    is_response: bool = False,
) -> Prompt:
    """`(x, y, r)`: the problem, the draft's token ids without their end token, and the reference unless withheld.

    The reference is an answer, or a whole response where `is_response`.
    """
    parts = [question, style.repair_instruction, _DRAFT_MARK]
    if reference is not None:
        instruction = style.response_reference_instruction if is_response else style.reference_instruction
        parts.append(instruction.replace("{reference}", reference))
    for name, text in (("question", question), ("reference", reference or "")):
        if _DRAFT_MARK in text:
            raise DataError(f"{name} {text[:60]!r} holds the private-use character U+E000; take it out")
    head, tail = _render(processor, images, _join(*parts)).split(_DRAFT_MARK)
    return Prompt(head, tuple(images), tuple(draft_ids), tail)


def continuation_prompt(prompt: Prompt, response_ids: Sequence[int]) -> Prompt:
    """The policy's prompt with the beginning of a response, to be gone on with."""
    return replace(prompt, spliced_ids=tuple(response_ids))


def _join(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _render(processor: Any, images: Sequence[Image.Image], text: str) -> str:
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
