"""Questions about a strip of digits, their worked answers, and answers in which something went wrong.

A worked answer first reads the strip, then works in single steps; a wrong reading or a wrong step stays in the rest
of the answer, as it does in a person's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

QUESTIONS = {
    "sum": "What is the sum of the digits?",
    "difference": "What is the largest digit minus the smallest digit?",
    "largest": "What is the largest digit?",
    "even": "How many digits are even?",
    "above": "How many digits are larger than 4?",
}
LOOKALIKE = {0: 6, 1: 7, 2: 3, 3: 8, 4: 9, 5: 6, 6: 5, 7: 1, 8: 3, 9: 4}
"""What a careless reader takes each digit for."""


@dataclass(frozen=True)
class Slips:
    """Where an answer goes wrong: each reading and each step with its own probability, at random."""

    reading: float
    step: float
    rng: np.random.Generator

    def read(self, digit: int) -> int:
        if self.rng.random() >= self.reading:
            return digit
        return LOOKALIKE[digit]

    def step_to(self, value: int) -> int:
        if self.rng.random() >= self.step:
            return value
        return value + 1 if value == 0 or self.rng.random() < 0.5 else value - 1


def no_slips() -> Slips:
    return Slips(0.0, 0.0, np.random.default_rng(0))


def gold_answer(kind: str, digits: Sequence[int]) -> int:
    """The right answer, computed on its own rather than read off a worked answer."""
    return {
        "sum": sum(digits),
        "difference": max(digits) - min(digits),
        "largest": max(digits),
        "even": sum(digit % 2 == 0 for digit in digits),
        "above": sum(digit > 4 for digit in digits),
    }[kind]


def reading(digits: Sequence[int]) -> str:
    return f"The digits are {listed(digits)}."


def worked_answer(kind: str, digits: Sequence[int], slips: Slips) -> str:
    """A worked answer of 30 to 60 tokens that ends in `The answer is N.`"""
    seen = [slips.read(digit) for digit in digits]
    steps, result = _STEPS[kind](seen, slips)
    return f"{reading(seen)} {steps} The answer is {result}."


def sum_steps(seen: Sequence[int], slips: Slips) -> tuple[str, int]:
    """One digit added after the other, and the sum that comes out."""
    total, steps = seen[0], []
    for digit in seen[1:]:
        after = slips.step_to(total + digit)
        steps.append(f"{total} + {digit} = {after}.")
        total = after
    return " ".join(steps), total


def running(choose: Callable[[list[int]], int], seen: Sequence[int], slips: Slips) -> list[int]:
    """The largest, or smallest, of the digits so far, at each of them."""
    values: list[int] = []
    for digit in seen:
        values.append(slips.step_to(choose([digit, *values[-1:]])))
    return values


def running_count(hits: Sequence[bool], slips: Slips) -> list[int]:
    """How many of the digits so far are meant, at each of them."""
    counts = [0]
    for hit in hits:
        counts.append(slips.step_to(counts[-1] + hit))
    return counts[1:]


def _difference(seen: Sequence[int], slips: Slips) -> tuple[str, int]:
    high, low = slips.step_to(max(seen)), slips.step_to(min(seen))
    result = slips.step_to(abs(high - low))
    return f"The largest is {high}. The smallest is {low}. {high} - {low} = {result}.", result


def _largest(seen: Sequence[int], slips: Slips) -> tuple[str, int]:
    largest = running(max, seen, slips)
    return f"Largest so far: {listed(largest)}.", largest[-1]


def _even(seen: Sequence[int], slips: Slips) -> tuple[str, int]:
    counts = running_count([digit % 2 == 0 for digit in seen], slips)
    return f"Even so far: {listed(counts)}.", counts[-1]


def _above(seen: Sequence[int], slips: Slips) -> tuple[str, int]:
    counts = running_count([digit > 4 for digit in seen], slips)
    return f"Larger so far: {listed(counts)}.", counts[-1]


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


_STEPS = {"sum": sum_steps, "difference": _difference, "largest": _largest, "even": _even, "above": _above}
