"""Requests that enter an engine as others end: it never waits for a batch's longest response."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Generic, Protocol, TypeVar

Ask = TypeVar("Ask")
Result = TypeVar("Result")
AskIn = TypeVar("AskIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


class Stepped(Protocol[AskIn, ResultOut]):
    """An engine that works on many requests side by side."""

    def begin(self, number: int, ask: AskIn) -> None:
        """Take a request."""
        ...

    def step(self) -> Mapping[int, ResultOut]:
        """Go on with all of them; results of those that have ended, by number."""
        ...

    def abort(self, numbers: Sequence[int]) -> None:
        """Leave off requests that have not ended."""
        ...


class Feed(Generic[Ask, Result]):
    """Keeps an engine supplied, with at most `most` requests at once.

    Several runs may be open: while one is asked for its results, the engine goes on with what the others gave it.
    """

    def __init__(self, engine: Stepped[Ask, Result], most: int) -> None:
        self._engine = engine
        self._most = most
        self._numbers = count()
        self._inside: set[int] = set()
        self._ended: dict[int, Result] = {}

    def run(self, batches: Iterable[Iterable[Ask]]) -> Iterator[list[Result]]:
        """Results of each batch, in order; a batch is taken when all before it have entered and there is room."""
        taken: deque[list[int]] = deque()
        entries = self._entries(batches, taken)
        try:
            while True:
                room = self._room
                for number, ask in islice(entries, room):
                    self._inside.add(number)
                    self._engine.begin(number, ask)
                if taken and all(number in self._ended for number in taken[0]):
                    yield [self._ended.pop(number) for number in taken.popleft()]
                elif taken or not room:
                    self._step()
                else:
                    return
        finally:
            self._forget({number for numbers in taken for number in numbers})

    @property
    def _room(self) -> int:
        return max(0, self._most - len(self._inside))

    def _entries(self, batches: Iterable[Iterable[Ask]], taken: deque[list[int]]) -> Iterator[tuple[int, Ask]]:
        """Every request with a number of its own, its batch noted in `taken` before the first."""
        for batch in batches:
            numbered = [(next(self._numbers), ask) for ask in batch]
            taken.append([number for number, _ in numbered])
            yield from numbered

    def _step(self) -> None:
        ended = self._engine.step()
        self._inside -= ended.keys()
        self._ended |= ended

    def _forget(self, numbers: set[int]) -> None:
        if unfinished := sorted(numbers & self._inside):
            self._engine.abort(unfinished)
        self._inside -= numbers
        for number in numbers & self._ended.keys():
            del self._ended[number]
