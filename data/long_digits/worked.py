"""Worked answers of 80 tokens and more: every digit is taken up again, one after the other.

Errors are of two sorts, as a real policy's are: random slips, and thick digits that are mostly taken for their
lookalikes, which greedy decoding shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from data.strips.handwriting import Strip
from data.strips.worked import LOOKALIKE, Slips, listed, no_slips, reading, running, running_count, sum_steps

MISTAKEN = {1: 7, 3: 8, 5: 6, 9: 4}
"""What a thick digit is mostly taken for."""


class Carelessness(NamedTuple):
    """How far thick digits are mistaken."""

    thick_quantile: float
    """A scan with more ink than this share of its digit's scans is thick."""
    mistaken_rate: float
    """How often a thick digit of `MISTAKEN` is taken for its lookalike."""


@dataclass(frozen=True)
class CarelessReader:
    """Takes thick digits of `MISTAKEN` for their lookalikes, and any digit now and then."""

    careless: Carelessness
    slip_rate: float
    rng: np.random.Generator

    def read(self, strip: Strip) -> list[int]:
        return [self._one(digit, scan) for digit, scan in zip(strip.digits, strip.scans, strict=True)]

    def _one(self, digit: int, scan: int) -> int:
        if scan in thick_scans(self.careless.thick_quantile) and self.rng.random() < self.careless.mistaken_rate:
            return MISTAKEN[digit]
        return LOOKALIKE[digit] if self.rng.random() < self.slip_rate else digit


@cache
def thick_scans(quantile: float) -> frozenset[int]:
    """Indices in scikit-learn of the thick scans of the digits in `MISTAKEN`."""
    data = load_digits()
    ink = data.images.sum((1, 2))
    return frozenset(
        int(index)
        for digit in MISTAKEN
        for index in np.flatnonzero(data.target == digit)
        if ink[index] > np.quantile(ink[data.target == digit], quantile)
    )


def right(kind: str, digits: Sequence[int]) -> str:
    """The worked answer without a slip."""
    return worked_from(kind, digits, no_slips())


def worked_from(kind: str, seen: Sequence[int], slips: Slips) -> str:
    """A worked answer to these digits as they were read, in steps that may slip; it ends in `The answer is N.`"""
    steps, result = _STEPS[kind](seen, slips)
    return f"{reading(seen)} {steps} The answer is {result}."


def _difference(seen: Sequence[int], slips: Slips) -> tuple[str, int]:
    largest, smallest = running(max, seen, slips), running(min, seen, slips)
    high, low = largest[-1], smallest[-1]
    result = slips.step_to(abs(high - low))
    return (
        f"Largest so far: {listed(largest)}. Smallest so far: {listed(smallest)}. {high} - {low} = {result}.",
        result,
    )


def _largest(seen: Sequence[int], slips: Slips) -> tuple[str, int]:
    largest = running(max, seen, slips)
    return " ".join(f"{digit}: largest {so_far}." for digit, so_far in zip(seen, largest, strict=True)), largest[-1]


def _even(seen: Sequence[int], slips: Slips) -> tuple[str, int]:
    return _counted("even", seen, running_count([digit % 2 == 0 for digit in seen], slips))


def _above(seen: Sequence[int], slips: Slips) -> tuple[str, int]:
    return _counted("larger", seen, running_count([digit > 4 for digit in seen], slips))


def _counted(name: str, seen: Sequence[int], counts: Sequence[int]) -> tuple[str, int]:
    return " ".join(f"{digit}: {count} {name}." for digit, count in zip(seen, counts, strict=True)), counts[-1]


_STEPS = {"sum": sum_steps, "difference": _difference, "largest": _largest, "even": _even, "above": _above}
