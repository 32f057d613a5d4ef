"""A run in which nothing is right names the field to look at."""

from collections import Counter

import pytest

from stages.recipe import load_recipe
from stages.reward.lost_answers import Response, count_lost, warn_of_none_right, why_none_is_right

WRONG = Response("The answer is 7.", "stop")


@pytest.mark.parametrize(
    ("responses", "counts", "told"),
    [
        ([Response("The digits are 3, 4", "length")] * 3 + [WRONG], (4, 3, 3), "raise rollout.max_new_tokens (72)"),
        ([Response("Seven", "stop")] * 3 + [WRONG], (4, 0, 3), "let prompt.instruction say how a response ends"),
        ([WRONG] * 4, (4, 0, 0), "reward.threshold (1)"),
    ],
)
def test_the_likeliest_cause_is_named(responses, counts, told):
    recipe, found = load_recipe("digits"), Counter()
    count_lost(found, recipe, responses)
    names = ("responses", "responses_cut", "responses_without_final_answer")
    assert tuple(found[name] for name in names) == counts
    assert told in why_none_is_right(found, recipe)


def test_nothing_is_told_where_something_is_right_or_nothing_was_scored(caplog):
    recipe, unscored = load_recipe("digits"), load_recipe("digits", ["reward.name=none"])
    warn_of_none_right("problems", {"responses": 4, "correct": 1}, recipe)
    warn_of_none_right("problems", {"responses": 0, "correct": 0}, recipe)
    warn_of_none_right("problems", {"responses": 4, "correct": 0}, unscored)
    assert not caplog.records
    warn_of_none_right("problems", {"responses": 4, "correct": 0}, recipe)
    assert "problems: no response is right: of 4, " in caplog.text


def test_a_function_of_the_user_s_needs_no_final_answer():
    found = Counter()
    count_lost(found, load_recipe("digits", ["reward.name=mine:own"]), [Response("Seven", "stop")])
    assert found["responses_without_final_answer"] == 0
