"""Conversations in a row: what the user asks and what the assistant answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stages.importing.cells import Unfit, as_list, text
from stages.reward.extraction import final_answer

_SIDES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
"""Who speaks, as `role` (OpenAI, ms-swift, verl) and `from` (LLaVA) say it."""
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


class Exchange(NamedTuple):
    """A question and the response to it, which may not be there."""

    question: str
    response: str


def exchange(value: Any) -> Exchange | None:
    """The one question and its response of a list of messages; None for a cell that is no such list.

    What a system message says is left out: the recipe's `prompt.instruction` takes its place.

    Raises:
        Unfit: `several_turns`; `messages_unreadable`, a role that is not known or a content that is no text.
    """
    messages = as_list(value)
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        return None
    said: dict[str, list[str]] = {"user": [], "assistant": [], "system": []}
    for message in messages:
        side = _SIDES.get(str(message.get("role") or message.get("from")).lower())
        if side is None:
            raise Unfit("messages_unreadable")
        said[side].append(_content(message.get("content", message.get("value"))))
    if len(said["user"]) > 1 or len(said["assistant"]) > 1:
        raise Unfit("several_turns")
    return Exchange("".join(said["user"]), "".join(said["assistant"]))


def bare_answer(response: str) -> str:
    """The final answer that a response states, or the text itself where it states none in words of its own."""
    tagged = _TAGGED.findall(response)
    stated = tagged[-1].strip() if tagged else response.strip()
    return final_answer(stated) or stated


def _content(value: Any) -> str:
    """A text, or the parts of one; an image among them is a placeholder."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return text(value)
    parts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image", "image_url"):
            raise Unfit("messages_unreadable")
        parts.append(text(part.get("text")) if kind == "text" else "<image>")
    return "\n".join(parts)
