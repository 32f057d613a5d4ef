"""What a response is expected to be: its draft, followed from where the response stands in it.

Axes: B rows in use, D tokens of the longest draft.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NOTHING = -1
"""Stands where no token is expected; no token has this id."""
REALIGN_AFTER = 2
"""Mismatches in a row, after which the draft is looked through."""
REALIGN_BY = (4, 3, 2)
"""Numbers of last tokens that are looked for in it, the first that stands there counts."""


class Drafts:
    """The drafts of rows, each with the place that its row has come to.

    Behind a mismatch a draft goes on one further, as if a token had been replaced. After two in a row it goes on
    behind the place where the last tokens of the response stand in it, the nearest one: behind what was inserted or
    left out.
    """

    def __init__(self, rows: int, longest: int) -> None:
        self._draft_BD = np.full((rows, longest + 1), NOTHING)
        self._length_B = np.zeros(rows, np.int64)
        self._place_B = np.zeros(rows, np.int64)
        self._misses_B = np.zeros(rows, np.int64)

    def put(self, row: int, draft: Sequence[int]) -> None:
        self._draft_BD[row] = NOTHING
        self._draft_BD[row, : len(draft)] = draft
        self._length_B[row], self._place_B[row], self._misses_B[row] = len(draft), 0, 0

    def move(self, sources: Ints, targets: Ints) -> None:
        for array in (self._draft_BD, self._length_B, self._place_B, self._misses_B):
            array[targets] = array[sources]

    def guesses(self, rows: int, most: int) -> Ints:
        """(B,) tokens to be verified in one pass: at most so many, halved for each mismatch in a row but the first.

        So a draft that is of no use costs little; one token is tried always, or the draft would not be found again.
        """
        left_B = np.maximum(self._length_B[:rows] - self._place_B[:rows], 0)
        halvings_B = np.clip(self._misses_B[:rows] - 1, 0, 62)
        return np.minimum(left_B, np.maximum(most >> halvings_B, min(most, 1)))

    def ahead(self, row_N: Ints, offset_N: Ints) -> Ints:
        """The token expected so many tokens from now, from 0; `NOTHING` behind the draft's end."""
        place_N = np.minimum(self._place_B[row_N] + offset_N, self._length_B[row_N])
        return self._draft_BD[row_N, place_N]

    def advance(self, emitted_B: Ints, missed_B: Flags, ids_BT: Ints, count_B: Ints) -> None:
        """Go on by what each row has emitted, the last of which was another token than expected where it `missed`.

        `ids_BT` holds `count_B` tokens of each response.
        """
        rows = len(emitted_B)
        self._place_B[:rows] += emitted_B
        alone_B = emitted_B == 1
        self._misses_B[:rows] = np.where(missed_B, np.where(alone_B, self._misses_B[:rows] + 1, 1), 0)
        lost_B = (self._misses_B[:rows] >= REALIGN_AFTER) & (self._length_B[:rows] > 0)
        for row in np.flatnonzero(lost_B):
            self._realign(int(row), ids_BT[row, : count_B[row]])

    def _realign(self, row: int, ids_T: Ints) -> None:
        draft_D = self._draft_BD[row, : self._length_B[row]]
        for size in REALIGN_BY:
            if size <= min(len(ids_T), len(draft_D)):
                windows_WS = np.lib.stride_tricks.sliding_window_view(draft_D, size)
                behind = np.flatnonzero((windows_WS == ids_T[-size:]).all(-1)) + size
                if len(behind):
                    self._place_B[row] = behind[np.abs(behind - self._place_B[row]).argmin()]
                    return
