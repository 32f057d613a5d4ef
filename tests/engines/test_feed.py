"""Requests enter as others end: order, room, and several runs at once."""

import random

import pytest

from seats import Seats
from stages.engines.feed import Feed


def test_a_request_enters_when_another_ends():
    """By hand: two seats, lengths 5 1 | 1 1 | 2. The four short ones pass by on the second seat, five steps in all.

    Batch by batch it would take 5 + 1 + 2.
    """
    seats, given = Seats(2), []
    for lengths in Feed(seats, 2).run([[5, 1], [1, 1], [2]]):
        given.append((lengths, seats.steps))
    assert given == [([5, 1], 5), ([1, 1], 5), ([2], 5)]


def test_results_come_in_order_whatever_ends_first():
    rng = random.Random(1)
    batches = [[rng.randint(1, 40) for _ in range(rng.randint(0, 6))] for _ in range(50)]
    seats = Seats(8)
    assert list(Feed(seats, 12).run(batches)) == batches
    assert seats.most_inside == 12
    # At each step but the last ones all seats are taken.
    total = sum(map(sum, batches))
    assert total / 8 <= seats.steps <= total / 8 + 40


def test_a_batch_is_made_when_there_is_room():
    made = []
    batches = ((made.append(length), [length, length])[1] for length in (1, 5, 5, 5))
    run = Feed(Seats(4), 4).run(batches)
    assert made == []
    assert next(run) == [1, 1]
    assert made == [1, 5, 5]  # the third in the place of the first
    assert list(run) == [[5, 5]] * 3


def test_another_run_is_answered_in_between():
    """Also when the first has filled the engine; what it asked goes on meanwhile."""
    seats = Seats(2)
    feed = Feed(seats, 3)
    first = feed.run([[1], [6, 2], [4]])
    assert next(first) == [1]
    assert list(feed.run([[3, 1]])) == [[3, 1]]
    steps = seats.steps
    assert list(first) == [[6, 2], [4]]
    assert seats.steps - steps < 6


@pytest.mark.parametrize("given", [0, 1])
def test_a_run_that_is_left_takes_its_requests_along(given):
    seats = Seats(2)
    feed = Feed(seats, 4)
    run = feed.run([[1, 2], [9, 1], [9]])
    if given:
        assert next(run) == [1, 2]
    run.close()
    assert (seats.left, seats.lengths) == ({}, {})
    assert list(feed.run([[2, 1]])) == [[2, 1]]
    assert seats.lengths == {}


def test_what_an_engine_raises_ends_the_run():
    class Failing(Seats):
        def step(self):
            if self.steps == 2:
                raise ValueError("diverged")
            return super().step()

    seats = Failing(2)
    run = Feed(seats, 4).run([[1], [5, 5]])
    assert next(run) == [1]
    with pytest.raises(ValueError, match="diverged"):
        next(run)
    assert seats.lengths == {}


def test_no_batches_and_empty_ones():
    feed = Feed(Seats(2), 2)
    assert list(feed.run([])) == []
    assert list(feed.run([[], [2], []])) == [[], [2], []]
