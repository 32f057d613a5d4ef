"""The responses that are being written, a row each; rows that have ended leave, the last ones move to their places.

Axes: B rows in use, N tokens of a pass, Q of the row with the most, T tokens of a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.engines.drafts import Drafts, Flags, Ints

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """The tokens of one pass, row after row: the last of each, and those of its draft that are expected behind it."""

    starts_B: Ints
    """Where each row's tokens begin among the N."""
    row_N: Ints
    offset_N: Ints
    """0 for the first of its row."""
    ids_N: Ints
    expected_N: Ints
    """The draft's token behind each, or `NOTHING`."""
    slot_N: Ints
    """Number of tokens before it in its row."""
    position_N: Ints
    """Rotary, the same on every axis: behind a prompt there is only text."""
    uniform_N2: Floats

    @property
    def rows(self) -> int:
        return len(self.starts_B)

    @property
    def width(self) -> int:
        return int(self.offset_N.max()) + 1

    @property
    def is_even(self) -> bool:
        """Whether every row has as many tokens."""
        return self.rows * self.width == len(self.row_N)

    def place_BQ(self) -> Ints:
        """Which of the N stands there; behind a row's last token, that one again."""
        last_B = np.append(self.starts_B[1:], len(self.row_N)) - 1
        return np.minimum(self.starts_B[:, None] + np.arange(self.width), last_B[:, None])

    def where_N(self) -> Ints:
        """Where among the B x Q each token stands."""
        return self.row_N * self.width + self.offset_N


class Rows:
    """State of at most `most` rows, of which the first `used` are in use."""

    def __init__(self, most: int, max_new_tokens: int, longest_draft: int) -> None:
        self.most, self.used = most, 0
        self._max_new_tokens = max_new_tokens
        self._drafts = Drafts(most, longest_draft)
        self._place_B, self._sample_B, self._prompt_B, self._position_B, self._last_B, self._count_B = np.zeros(
            (6, most), np.int64
        )
        self._ids_BT = np.zeros((most, max_new_tokens), np.int64)
        self._logprobs_BT = np.zeros((most, max_new_tokens))
        self._uniform_BT2 = np.zeros((most, max_new_tokens, 2))

    @property
    def free(self) -> int:
        return self.most - self.used

    @property
    def slots_used(self) -> Ints:
        """(B,) tokens of each row that stay in the cache."""
        return self._prompt_B[: self.used] + self._count_B[: self.used]

    def open(
        self,
        place: int,
        sample: int,
        prompt_ids: Sequence[int],
        position: int,
        uniform_T2: Floats,
        draft: Sequence[int],
    ) -> int:
        """Begin a response behind a prompt, whose last token stands at a position; the row."""
        row = self.used
        self.used += 1
        self._place_B[row], self._sample_B[row], self._count_B[row] = place, sample, 0
        self._prompt_B[row], self._last_B[row], self._position_B[row] = len(prompt_ids) - 1, prompt_ids[-1], position
        self._uniform_BT2[row] = uniform_T2
        self._drafts.put(row, draft)
        return row

    def span(self, most: int) -> Span:
        """The next pass, of at most so many tokens a row."""
        count_B = self._count_B[: self.used]
        room_B = self._max_new_tokens - count_B
        length_B = np.minimum(self._drafts.guesses(self.used, most - 1) + 1, room_B)
        stops_B = length_B.cumsum()
        starts_B = stops_B - length_B
        row_N = np.repeat(np.arange(self.used), length_B)
        offset_N = np.arange(stops_B[-1]) - starts_B[row_N]
        expected_N = self._drafts.ahead(row_N, offset_N)
        ids_N = np.roll(expected_N, 1)
        ids_N[starts_B] = self._last_B[: self.used]
        index_N = count_B[row_N] + offset_N
        slot_N, position_N = self._prompt_B[row_N] + index_N, self._position_B[row_N] + index_N
        uniform_N2 = self._uniform_BT2[row_N, index_N]
        return Span(starts_B, row_N, offset_N, ids_N, expected_N, slot_N, position_N, uniform_N2)

    def emit(self, span: Span, ids_N: Ints, logprobs_N: Floats, end_ids: Sequence[int]) -> Flags:
        """Keep what was drawn up to each row's first token that ends it or was not expected; (B,) has it ended?"""
        stops_N = (ids_N != span.expected_N) | np.isin(ids_N, end_ids)
        stops_N[np.append(span.starts_B[1:], len(ids_N)) - 1] = True
        first_B = np.minimum.reduceat(np.where(stops_N, span.offset_N, len(ids_N)), span.starts_B)
        kept_N = span.offset_N <= first_B[span.row_N]
        row_K, index_K = span.row_N[kept_N], (self._count_B[span.row_N] + span.offset_N)[kept_N]
        self._ids_BT[row_K, index_K], self._logprobs_BT[row_K, index_K] = ids_N[kept_N], logprobs_N[kept_N]
        last_B = span.starts_B + first_B
        self._last_B[: self.used] = ids_N[last_B]
        self._count_B[: self.used] += first_B + 1
        missed_B = ids_N[last_B] != span.expected_N[last_B]
        self._drafts.advance(first_B + 1, missed_B, self._ids_BT, self._count_B)
        return np.isin(ids_N[last_B], end_ids) | (self._count_B[: self.used] == self._max_new_tokens)

    def response(self, row: int) -> tuple[tuple[int, int], list[int], list[float]]:
        """Its request and sample, its tokens, and their log-probs."""
        count = self._count_B[row]
        key = int(self._place_B[row]), int(self._sample_B[row])
        return key, self._ids_BT[row, :count].tolist(), self._logprobs_BT[row, :count].tolist()

    def close(self, ended_B: Flags) -> tuple[Ints, Ints]:
        """Let rows leave; which rows move, and where to."""
        left = self.used - int(ended_B.sum())
        targets = np.flatnonzero(ended_B[:left])
        sources = left + np.flatnonzero(~ended_B[left:])
        arrays = self._place_B, self._sample_B, self._prompt_B, self._position_B, self._last_B, self._count_B
        for array in (*arrays, self._ids_BT, self._uniform_BT2, self._logprobs_BT):
            array[targets] = array[sources]
        self._drafts.move(sources, targets)
        self.used = left
        return sources, targets
