"""Worked answers of long digits, each of whose steps is put in one of several ways, as people put them.

Which way says nothing about the answer, so a policy can have no preference: most of what it is unsure of stands beside
its errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from data.strips.worked import Slips, no_slips, running, running_count

Piece = tuple[str, ...]
"""Ways to say the same, of which an answer takes one."""

_COMMA: Piece = (", ", "; ", ": ", " - ")
"""Between the members of a list."""
_COLON: Piece = (": ", ", ", "; ", " - ")
"""Between a digit and what is found there."""
_STOP: Piece = (". ", "; ", ", ")
"""At the end of a step."""
_SO: Piece = ("", "so ")
_IS: Piece = (" = ", " is ")
SWEEPS = 2
"""Over the pieces, in the search for the nearest wording; one finds it almost always."""


def worked_pieces(kind: str, seen: Sequence[int], slips: Slips) -> list[Piece]:
    """A worked answer to these digits as they were read, in steps that may slip; it ends in `The answer is N.`"""
    steps, result = _STEPS[kind](seen, slips)
    return [("The digits are ",), *_listed(seen), (". ",), *steps, (f"The answer is {result}.",)]


def in_some_words(pieces: Sequence[Piece], rng: np.random.Generator) -> str:
    """Each piece in a way that is drawn evenly."""
    return "".join(piece[rng.integers(len(piece))] for piece in pieces)


def in_words_of(pieces: Sequence[Piece], text: str) -> str:
    """Each piece in the way that leaves the fewest edits of characters to the text, the other pieces as they are."""
    said = [piece[0] for piece in pieces]

    def distance_with(index: int, way: str) -> int:
        return Levenshtein.distance("".join([*said[:index], way, *said[index + 1 :]]), text)

    for _ in range(SWEEPS):
        for index, piece in enumerate(pieces):
            if len(piece) > 1:
                said[index] = min(piece, key=lambda way, index=index: distance_with(index, way))
    return "".join(said)


def repaired(kind: str, digits: Sequence[int], draft: str) -> str:
    """The worked answer without a slip, in the words of a draft."""
    return in_words_of(worked_pieces(kind, digits, no_slips()), draft)


def _listed(numbers: Sequence[int]) -> list[Piece]:
    return [piece for number in numbers for piece in (_COMMA, (str(number),))][1:]


def _sum(seen: Sequence[int], slips: Slips) -> tuple[list[Piece], int]:
    total = seen[0]
    steps: list[Piece] = []
    for digit in seen[1:]:
        after = slips.step_to(total + digit)
        steps += [_SO, (f"{total} + {digit}",), _IS, (str(after),), _STOP]
        total = after
    return steps, total


def _difference(seen: Sequence[int], slips: Slips) -> tuple[list[Piece], int]:
    largest, smallest = running(max, seen, slips), running(min, seen, slips)
    high, low = largest[-1], smallest[-1]
    result = slips.step_to(abs(high - low))
    lists = [("Largest so far: ",), *_listed(largest), _STOP, ("Smallest so far: ",), *_listed(smallest), _STOP]
    return [*lists, (f"{high} - {low}",), _IS, (str(result),), _STOP], result


def _largest(seen: Sequence[int], slips: Slips) -> tuple[list[Piece], int]:
    found = running(max, seen, slips)
    return _at_each(seen, [[("largest ", "largest is "), (str(largest),)] for largest in found]), found[-1]


def _even(seen: Sequence[int], slips: Slips) -> tuple[list[Piece], int]:
    return _counted("even", seen, running_count([digit % 2 == 0 for digit in seen], slips))


def _above(seen: Sequence[int], slips: Slips) -> tuple[list[Piece], int]:
    return _counted("larger", seen, running_count([digit > 4 for digit in seen], slips))


def _counted(name: str, seen: Sequence[int], counts: Sequence[int]) -> tuple[list[Piece], int]:
    return _at_each(seen, [[(str(count),), (" ", " are "), (name,)] for count in counts]), counts[-1]


def _at_each(seen: Sequence[int], found: Sequence[Sequence[Piece]]) -> list[Piece]:
    return [piece for digit, step in zip(seen, found, strict=True) for piece in ((str(digit),), _COLON, *step, _STOP)]


_STEPS = {"sum": _sum, "difference": _difference, "largest": _largest, "even": _even, "above": _above}
