"""An engine of so many seats, on which a request of length n sits for n steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence


class Seats:
    """Its requests are lengths, and so are their results; who finds no seat waits in line."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.left: dict[int, int] = {}
        """Steps that each seated request still takes."""
        self.waiting: deque[int] = deque()
        self.lengths: dict[int, int] = {}
        self.steps = 0
        self.most_inside = 0

    def begin(self, number: int, length: int) -> None:
        self.lengths[number] = length
        self.waiting.append(number)
        self.most_inside = max(self.most_inside, len(self.lengths))

    def step(self) -> Mapping[int, int]:
        self.steps += 1
        while self.waiting and len(self.left) < self.count:
            number = self.waiting.popleft()
            self.left[number] = self.lengths[number]
        assert self.left, "a step of an empty engine"
        self.left = {number: left - 1 for number, left in self.left.items()}
        ended = [number for number, left in self.left.items() if left == 0]
        return {number: self._leave(number) for number in ended}

    def abort(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.waiting = deque(other for other in self.waiting if other != number)
            self.left.pop(number, None)
            del self.lengths[number]

    def _leave(self, number: int) -> int:
        del self.left[number]
        return self.lengths.pop(number)
