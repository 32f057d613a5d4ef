"""Which reference a repair prompt shows (eq. 5): the annotated answer, or a whole right response."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

from stages.artifacts.problems import Problem
from stages.sections import ReferenceKind
from stages.seeds import Purpose, derive_seed


class References:
    """Draws the kind of each reference, and the sibling where there are several, by the seed."""

    def __init__(self, kinds: Sequence[ReferenceKind], seed: int, counts: Counter[str]) -> None:
        self.kinds = kinds
        self.seed = seed
        self.counts = counts

    def draw(self, problem: Problem, sample: int, siblings: Sequence[str]) -> str | None:
        """A right response to show to the repair of this sample of the problem; None stands for the annotated answer.

        Every kind is as likely, and so is every one of `siblings`, correct responses to the problem. Where there is
        none of the kind, the answer takes its place, counted as `references_missing`.
        """
        kind = self.kinds[self._number(Purpose.REFERENCE_KINDS, problem, sample) % len(self.kinds)]
        if kind == "answer":
            return None
        preferred = [] if problem.preferred is None else [problem.preferred]
        responses = siblings if kind == "sibling" else preferred
        if not responses:
            self.counts["references_missing"] += 1
            return None
        return responses[self._number(Purpose.SIBLINGS, problem, sample) % len(responses)]

    def _number(self, purpose: Purpose, problem: Problem, sample: int) -> int:
        return derive_seed(self.seed, purpose, zlib.crc32(problem.problem_id.encode()), sample)
