"""Work ahead in the background: order, errors, one item ahead and no further, no thread left."""

import threading

import pytest

from stages.runtime.prefetch import prefetch


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("items", [[], [1], [3, 1, 2], [None, False, 0, ()], range(100)])
def test_the_items_come_in_order(items):
    assert list(prefetch(items)) == list(items)
    assert background_threads() == []


def test_the_next_item_is_made_while_one_is_in_use():
    in_use, made = threading.Event(), threading.Event()

    def items():
        yield 0
        assert in_use.wait(10)
        made.set()
        yield 1

    ahead = prefetch(items())
    assert next(ahead) == 0
    in_use.set()
    assert made.wait(10)
    assert list(ahead) == [1]


def test_it_is_one_item_ahead():
    asked = [threading.Event() for _ in range(4)]

    def items():
        for index, event in enumerate(asked):
            event.set()
            yield index

    ahead = prefetch(items())
    assert not asked[0].is_set()
    for index in range(2):
        assert next(ahead) == index
        assert asked[index + 1].wait(10)
        assert not asked[index + 2].wait(0.1)
    ahead.close()
    assert not asked[3].is_set()


def test_an_error_comes_in_its_turn_with_its_place():
    def broken():
        yield 1
        yield 2
        raise KeyError("lost")

    seen = []
    with pytest.raises(KeyError, match="lost") as error:
        seen.extend(prefetch(broken()))
    assert seen == [1, 2]
    assert error.traceback[-1].name == "broken"
    assert background_threads() == []


def test_a_stop_iteration_inside_is_an_error_and_not_an_end():
    with pytest.raises(RuntimeError):
        list(prefetch(next(iter([])) for _ in range(2)))


def test_stopping_early_leaves_no_thread_and_closes_what_it_read():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    ahead = prefetch(endless())
    assert next(ahead) == 0
    assert len(background_threads()) == 1
    ahead.close()
    assert background_threads() == []
    assert closed.is_set()


def test_an_error_in_the_loop_leaves_no_thread():
    def consume():
        for _ in prefetch(range(5)):
            raise ValueError("in the loop")

    with pytest.raises(ValueError, match="in the loop"):
        consume()
    assert background_threads() == []
