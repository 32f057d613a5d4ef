"""Repairs are scored by what scored the rollouts that they stand beside: their rewards make one group's advantages."""

import pytest

from stages.artifacts.step import Step
from stages.declared import declare_rollout
from stages.errors import DataError
from stages.recipe import load_recipe
from stages.s4_build_masks.stage import check_rewards

JUDGE = ("reward.name=judge", "reward.judge={base_url: 'http://localhost:1/v1', model: tiny}")


@pytest.fixture
def rollouts_by(tmp_path, digits):
    """A function: the folder of rollouts that a recipe with these settings has scored."""

    def make(*settings):
        plan = declare_rollout(load_recipe("digits", settings), digits / "problems_test.parquet", digits / "base")
        step = Step.open(tmp_path / "rollouts", plan)
        step.finish()
        return step.out

    return make


@pytest.mark.parametrize(
    ("scored", "repaired", "told"),
    [
        ([], JUDGE, r"scored with other reward\.name, reward\.judge than the repairs would be; run df rollout"),
        (JUDGE, [*JUDGE, "reward.judge.model=large"], r"with other reward\.judge than"),
        (JUDGE, [], r"with other reward\.name than"),
    ],
)
def test_another_reward_is_refused(rollouts_by, scored, repaired, told):
    with pytest.raises(DataError, match=told):
        check_rewards(rollouts_by(*scored), load_recipe("digits", repaired))


def test_other_code_of_the_same_function_is_refused(rollouts_by, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code, own = tmp_path / "reward_that_changes.py", "reward.name=reward_that_changes:own"
    code.write_text("def own(response, problem):\n    return 1.0\n")
    made = rollouts_by(own)
    check_rewards(made, load_recipe("digits", [own]))
    code.write_text("def own(response, problem):\n    return 0.5\n")
    with pytest.raises(DataError, match=f"scored with other {code} than the repairs would be"):
        check_rewards(made, load_recipe("digits", [own]))


@pytest.mark.parametrize(
    ("scored", "repaired"),
    [
        ([], ["reward.threshold=0.5", "reward.workers=1"]),
        (JUDGE, [*JUDGE, "reward.judge.base_url=http://elsewhere:1/v1"]),
        (["reward.name=none"], []),
        ([], [JUDGE[1]]),
    ],
)
def test_what_changes_no_reward_and_what_was_filled_in_elsewhere_is_taken(rollouts_by, scored, repaired):
    check_rewards(rollouts_by(*scored), load_recipe("digits", repaired))


def test_rollouts_that_no_command_wrote_are_taken(tmp_path):
    check_rewards(tmp_path, load_recipe("digits", JUDGE))
