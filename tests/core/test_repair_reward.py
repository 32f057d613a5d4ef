"""Eq. 3 and 4, by hand: R = 1 or 0, C = 0.4, λ = 0.5, so that λC = 0.2."""

import pytest

from stages.core.repair_rewards import c1_gate, repair_reward


@pytest.mark.parametrize(("rewards", "gate"), [
    ([1.0, 1.0], False),
    ([1.0], False),
    ([1.0, 0.0], True),
    ([0.0, 0.0], True),
    ([0.9, 1.0], True),
    ([1.0, None], None),
    ([None, None], None),
    ([], None),
    ([0.0, None], True),
    ([None, 0.0], True),
])  # fmt: skip
def test_c1_closes_only_where_every_image_free_repair_is_correct(rewards, gate):
    assert c1_gate(rewards, 1.0) is gate


def test_c1_takes_the_recipe_s_threshold():
    assert c1_gate([0.6, 0.7], 0.6) is False
    assert c1_gate([0.6, 0.59], 0.6) is True


@pytest.mark.parametrize(("rewards", "gate"), [
    ([1.0, 0.0, 0.0, 0.0], True),
    ([1.0, 1.0, 0.0, 0.0], False),
    ([1.0, 1.0, 1.0, 1.0], False),
    ([1.0, None, 0.0, 0.0], None),
    ([1.0, 1.0, None, None], False),
    ([0.0, None, 0.0, 0.0], True),
])  # fmt: skip
def test_c1_closes_where_its_share_is_correct(rewards, gate):
    assert c1_gate(rewards, 1.0, share=0.5) is gate


@pytest.mark.parametrize(("reward", "c1", "audit", "everything", "task"), [
    (1.0, True, True, 0.8, 0.8),
    (0.0, True, True, -0.2, -0.2),
    (0.5, True, True, 0.3, 0.3),
    (1.0, False, True, 0.0, -0.2),
    (1.0, True, False, 0.0, -0.2),
    (1.0, False, False, 0.0, -0.2),
    (0.0, False, True, 0.0, -0.2),
    (0.0, True, False, 0.0, -0.2),
    (1.0, None, True, None, None),
    (1.0, True, None, None, None),
    (1.0, None, None, None, None),
    (1.0, False, None, 0.0, -0.2),
    (1.0, None, False, 0.0, -0.2),
    (None, True, True, None, None),
    (None, False, False, None, None),
])  # fmt: skip
def test_repair_reward(reward, c1, audit, everything, task):
    for gating, expected in (("all", everything), ("task", task)):
        found = repair_reward(reward, 0.4, c1, audit, edit_penalty=0.5, gating=gating)
        assert found == (None if expected is None else pytest.approx(expected))


def test_a_flagged_repair_outscores_an_honest_wrong_one_only_under_gating_all():
    def reward(gating, reward, audit):
        return repair_reward(reward, 0.4, True, audit, edit_penalty=0.5, gating=gating)

    assert reward("all", 1.0, False) > reward("all", 0.0, True)
    assert reward("task", 1.0, False) == reward("task", 0.0, True)
