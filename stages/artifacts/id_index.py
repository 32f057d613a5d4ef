"""Ids in order, and where each stands, in some 20 bytes an id beside its text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

FOUND_HELD = 4096
"""Places that are remembered: a round's stages ask for the same problems, each several times."""


class Ids(Sequence[str]):
    """Texts as they lie in an Arrow array; each becomes a string when it is looked at."""

    def __init__(self, texts: pa.Array) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return self._texts[int(index)].as_py()

    def at(self, places_N: NDArray[np.integer[Any]]) -> Ids:
        """Those at these places, in this order."""
        return Ids(self._texts.take(pa.array(places_N)))


class IdIndex:
    """Finds the place of an id by bisection."""

    def __init__(self, texts: pa.ChunkedArray) -> None:
        whole = texts.cast(pa.large_string()).combine_chunks()
        order_N = pc.array_sort_indices(whole)
        ordered = whole.take(order_N)
        self.ids, self.texts = Ids(whole), whole
        self._order_N = order_N.to_numpy().astype(np.uint32 if len(whole) < 2**32 else np.uint64)
        self.repeats_N = np.sort(self._order_N[1:][pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)])
        """Places whose id stands at an earlier one too."""
        self.find = lru_cache(maxsize=FOUND_HELD)(self._find)
        """The place of an id; None where there is none."""

    def _find(self, text: str) -> int | None:
        found = bisect_left(self._order_N, text, key=lambda place: self.texts[place].as_py())
        if found == len(self._order_N):
            return None
        place = int(self._order_N[found])
        return place if self.ids[place] == text else None
