"""Which tokens of a model stand for pixels, or stand around those that do: no response may hold them.

Families name them each in their own way, so they are told by the names that configuration, processor and tokenizer give
them (`boi_token_id`, `img_line_break_token`) and by the texts of the tokenizer's special tokens (`<|begin_of_image|>`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_BEGINNINGS = (
    "image",
    "img",
    "video",
    "vision",
    "visual",
    "pixel",
    "patch",
    "tile",
    "frame",
    "slice",
    "media",
    "audio",
)
"""Of a word in such a name or text."""
_ABBREVIATIONS = {"boi", "eoi", "boa", "eoa"}
"""Begin and end of image, and of audio."""
_ID_NAME = re.compile(r"_token_(id|index)$")
_TEXT_NAME = re.compile(r"_token$|_around_image$")
_MARKUP = re.compile(r"[<\[|].*[>\]|]")


def vision_ids(config: Any, processor: Any) -> set[int]:
    """Ids of tokens for images, videos and audio, their parts, and their boundaries."""
    tokenizer = processor.tokenizer
    named = {
        value
        for name, value in _attributes(config, processor, tokenizer)
        if _ID_NAME.search(name) and is_visual(name) and type(value) is int and value >= 0
    }
    return named | {
        token for token in map(tokenizer.convert_tokens_to_ids, visual_texts(processor)) if token is not None
    }


def visual_texts(processor: Any) -> list[str]:
    """Texts of those tokens that have one."""
    tokenizer = processor.tokenizer
    known = tokenizer.get_vocab()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {
        str(value)
        for name, value in _attributes(processor, tokenizer)
        if _TEXT_NAME.search(name) and is_visual(name) and (str(value) in special or _MARKUP.fullmatch(str(value)))
    }
    return sorted(text for text in named | {text for text in special if is_visual(text)} if text in known)


def is_visual(name: str) -> bool:
    """Whether a name or a token's text says that it is of an image, a video or sound: by its words, any case."""
    words = re.findall(r"[a-z]+", name.lower())
    if "reserved" in words:  # for nothing
        return False
    return any(word in _ABBREVIATIONS or word.startswith(_BEGINNINGS) for word in words) or {"row", "col"} <= {*words}


def _attributes(*holders: Any) -> Iterator[tuple[str, Any]]:
    """Names and values; a tokenizer keeps its special tokens apart."""
    for holder in holders:
        yield from vars(holder).items()
        yield from getattr(holder, "special_tokens_map", {}).items()
