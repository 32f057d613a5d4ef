"""What turns problems into a model's tokens and back; it needs no weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.model.encoding import Encoding


@dataclass(frozen=True)
class Codec:
    """A checkpoint's processor, and the ids that its responses may hold."""

    processor: Any
    end_ids: tuple[int, ...]
    """Ids that end a response."""
    banned_ids: tuple[int, ...]
    """Ids that may never be sampled: image, video and vision-boundary tokens, and rows beyond the tokenizer."""
    max_length: int | None
    """Tokens that a prompt and its response may have together; None where the checkpoint names no bound."""
    encoding: Encoding
    """How the processor's tensors of several prompts are put together."""

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def vocabulary_sha256(self) -> str:
        """Hex SHA-256 over which token has which id: token ids mean the same to models that share it."""
        return hashlib.sha256(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()

    @property
    def pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return self.end_ids[0] if pad_id is None else pad_id

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a response, without special tokens."""
        array = np.fromiter(ids, np.int64)  # of a list transformers looks at every id
        return self.tokenizer.decode(array, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself; special tokens have none."""
        return self.tokenizer.batch_decode(
            [[token] for token in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def without_end(self, ids: list[int]) -> list[int]:
        """The response without its end token, if it has one."""
        return ids[:-1] if ids and ids[-1] in self.end_ids else ids
