import pytest

from stages.errors import DataError, RecipeError
from stages.reward.opening import check_reward
from stages.reward.rewards import load_reward
from stages.sections import RewardSection

MODULE = """
CONSTANT = 3

def length(response, problem):
    return None if not response else min(len(response) / problem["longest"], 1)

def given(response, problem):
    return problem["value"]
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_math_reward_reads_each_problem_s_answer():
    with load_reward("math", workers=1, timeout_s=5.0) as reward:
        responses = [r"\boxed{7}", r"\boxed{7}", "no idea", r"\boxed{7}"]
        problems = [{"answer": "7", "id": 1}, {"answer": "8"}, {"answer": "None"}, {"answer": ""}]
        assert reward.score_many(responses, problems) == [1.0, 0.0, 0.0, None]


def test_math_reward_reads_each_problem_s_choices():
    with load_reward("math", workers=1, timeout_s=5.0) as reward:
        responses = ["The answer is a mouse.", "The answer is a mouse.", "The answer is (B) an owl.", "(B)"]
        choices = [["an owl", "a mouse"], None, ["an owl", "a mouse"], None]
        assert reward.score_many(responses, [{"answer": "B", "choices": texts} for texts in choices]) == [
            1.0,
            0,
            0,
            1.0,
        ]


def test_a_function_of_one_s_own_is_given_the_choices(tmp_path):
    (tmp_path / "choosing_rewards.py").write_text(
        "def count(response, problem):\n    return 1 / len(problem['choices'])\n"
    )
    with load_reward("choosing_rewards:count") as reward:
        assert reward.score_many(["x"], [{"choices": ["17", "18"]}]) == [0.5]


@pytest.mark.parametrize("problem", [{}, {"answer": None}, {"answer": 7}])
def test_math_reward_names_the_problem_without_answer(problem):
    with load_reward("math") as reward, pytest.raises(ValueError, match="problem 1: answer is"):
        reward.score_many(["", ""], [{"answer": "7"}, problem])


def test_none_scores_nothing_and_is_refused_where_scores_are_needed():
    with load_reward("none") as reward:
        assert reward.score_many(["7", "8"], [{"answer": "7"}] * 2) == [None, None]
    section = RewardSection(name="none")
    check_reward(section, needed=False)
    with pytest.raises(RecipeError, match=r"reward\.name is none, which df rollout alone can do without; take math"):
        check_reward(section)


def test_own_function_is_mapped_in_order():
    with load_reward("own_rewards:length") as reward:
        verdicts = reward.score_many(["ab", "", "abcdef"], [{"longest": 4}] * 3)
    assert verdicts == [0.5, None, 1.0]
    assert [type(verdict) for verdict in verdicts] == [float, type(None), float]


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf"), "1", [1.0]])
def test_own_function_outside_the_unit_interval_is_refused(value):
    with load_reward("own_rewards:given") as reward, pytest.raises(DataError, match="for response 1; return"):
        reward.score_many(["", ""], [{"value": 1}, {"value": value}])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "use 'math' or"),
        ("judge", "use 'math' or"),
        ("", "use 'math' or"),
        ("absent_module:f", "PYTHONPATH"),
        (":f", "use 'math' or"),
        ("own_rewards:absent", "no function 'absent'"),
        ("own_rewards:CONSTANT", "no function 'CONSTANT'"),
        ("own_rewards:", "no function ''"),
    ],
)
def test_unknown_reward_says_what_to_do(name, message):
    with pytest.raises(ValueError, match=message):
        load_reward(name)


def test_own_function_takes_no_options():
    with pytest.raises(ValueError, match="takes no options, got \\['workers'\\]"):
        load_reward("own_rewards:length", workers=2)
