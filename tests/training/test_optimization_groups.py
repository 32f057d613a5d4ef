"""Which trajectories of a problem are trained on, with what advantage and gate."""

import pytest

from stages.core.objectives import OBJECTIVES
from stages.errors import RecipeError
from stages.recipe import load_recipe
from stages.s2_rl_repair import RlRepair
from stages.sections import ObjectiveSection, RolloutSection, TrainSection
from stages.training.groups import optimization_group, rows_to_work_on
from stages.training.losses import check_objective
from stages.training.trainer import TrainingRow

ROLLOUT = RolloutSection(max_new_tokens=8)
GROUP_RELATIVE = sorted(OBJECTIVES.keys() - {"ppo"})


def row(role, reward, mask, *, in_pair):
    return {"role": role, "reward": reward, "mask": mask, "in_pair": in_pair, "ids": list(range(len(mask)))}


CORRECT = row("correct", 1.0, [False] * 3, in_pair=False)
ERROR = row("error", 0.0, [False, True, False, False], in_pair=True)
REPAIR = row("repair", 1.0, [False, True, False], in_pair=True)
LOST = row("error", 0.0, [False, False], in_pair=False)
UNGATED = row("error", 0.0, [True, True], in_pair=True)
GROUP = [CORRECT, ERROR, REPAIR, LOST]


def group(rows, gate="difference", algorithm="grpo", **objective):
    section = TrainSection(gate=gate, objective=ObjectiveSection(algorithm=algorithm, **objective))
    return optimization_group(rows, section, ROLLOUT)


@pytest.mark.parametrize("gate", ["difference", "soft"])
@pytest.mark.parametrize("algorithm", GROUP_RELATIVE)
def test_difference_feedback_trains_on_errors_and_their_repairs(gate, algorithm):
    found = group(GROUP, gate, algorithm)
    assert [trajectory.row for trajectory in found] == [ERROR, REPAIR]
    # Rewards 0 and 1: mean 1/2, unbiased deviation sqrt(1/2).
    scaled = 0.5 if algorithm == "dr_grpo" else 0.5 / (0.5**0.5 + 1e-4)
    assert [trajectory.advantage for trajectory in found] == pytest.approx([-scaled, scaled])


@pytest.mark.parametrize("algorithm", GROUP_RELATIVE)
def test_ungated_trains_on_the_whole_rollout_group(algorithm):
    found = group(GROUP, "none", algorithm)
    assert [trajectory.row for trajectory in found] == [CORRECT, ERROR, LOST]
    assert [list(trajectory.gate_T) for trajectory in found] == [[1.0] * 3, [1.0] * 4, [1.0] * 2]
    # Rewards 1, 0, 0: mean 1/3, unbiased deviation sqrt(1/3).
    scale = 1.0 if algorithm == "dr_grpo" else 1 / (3**-0.5 + 1e-4)
    expected = [2 / 3 * scale, -1 / 3 * scale, -1 / 3 * scale]
    assert [trajectory.advantage for trajectory in found] == pytest.approx(expected)


def test_gates_are_the_masks_hard_or_soft():
    assert [list(trajectory.gate_T) for trajectory in group(GROUP)] == [[0, 1, 0, 0], [0, 1, 0]]
    half = 2**-0.5
    soft = [list(trajectory.gate_T) for trajectory in group(GROUP, "soft")]
    assert soft == [pytest.approx([half, 1, half, 0.5]), pytest.approx([half, 1, half])]


@pytest.mark.parametrize("gate", ["difference", "soft"])
def test_an_error_kept_without_repair_has_gate_one(gate):
    found = group([CORRECT, ERROR, REPAIR, UNGATED], gate)
    assert [trajectory.row for trajectory in found] == [ERROR, REPAIR, UNGATED]
    assert list(found[2].gate_T) == [1, 1]


@pytest.mark.parametrize(("gate", "gates"), [("difference", [[0, 1, 0, 0], [0, 1, 0]]), ("none", [[1] * 4, [1] * 3])])
def test_dpo_takes_an_error_and_its_repair_whatever_the_gate(gate, gates):
    found = group([ERROR, REPAIR, CORRECT, UNGATED, LOST, ERROR, REPAIR], gate, "dpo")
    assert [trajectory.row for trajectory in found] == [ERROR, REPAIR] * 2
    assert [trajectory.advantage for trajectory in found] == [-1, 1] * 2
    assert [list(trajectory.gate_T) for trajectory in found[:2]] == gates
    assert group([CORRECT, UNGATED, LOST], gate, "dpo") == []


def test_of_a_pair_both_are_worked_on_or_neither():
    """One side without an open token still has the other's gradient to share."""

    def rows_of(*gates):
        return [
            TrainingRow(None, [1, 2], role, 1.0, gate) for role, gate in zip(("error", "repair"), gates, strict=True)
        ]

    closed, half, whole = rows_of([0, 0], [0, 0]), rows_of([0, 0], [0, 1]), rows_of([1, 0], [0, 1])
    working, totals = rows_to_work_on([*closed, *half, *whole], ObjectiveSection(algorithm="dpo"))
    assert working == [*half, *whole]
    assert totals == (6, 12)


def test_nothing_in_a_pair_is_no_group():
    assert group([CORRECT, LOST]) == []
    assert group([]) == []


ALL_RIGHT = [CORRECT, CORRECT]
ALL_WRONG = [LOST | {"reward": 0.2}, LOST | {"reward": 0.4}]


@pytest.mark.parametrize(
    ("rows", "algorithm", "size"),
    [(ALL_RIGHT, "dapo", 0), (ALL_WRONG, "dapo", 0), (ALL_RIGHT, "grpo", 2), (ALL_WRONG, "gspo", 2)],
)
def test_dynamic_sampling_drops_a_group_that_is_all_right_or_all_wrong(rows, algorithm, size):
    found = group(rows, "none", algorithm)
    assert len(found) == size


def test_the_overlong_penalty_enters_the_advantage_alone():
    """Limit 8, buffer 4: 8 tokens cost 1, 6 tokens 1/2."""
    rows = [row("correct", 1.0, [False] * 8, in_pair=False), row("error", 0.0, [False] * 6, in_pair=False), CORRECT]
    found = group(rows, "none", "dr_grpo", overlong_buffer=4)
    assert [trajectory.advantage for trajectory in found] == pytest.approx([0 - 1 / 6, -0.5 - 1 / 6, 1 - 1 / 6])
    assert [trajectory.row["reward"] for trajectory in found] == [1.0, 0.0, 1.0]
    all_right = [row("correct", 1.0, [False] * 8, in_pair=False), CORRECT]
    assert group(all_right, "none", "dapo", overlong_buffer=4) == []


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        ("sapo", "clip_low"),
        ("grpo", "tau_positive"),
        ("dapo", "max_response_length"),
        ("cispo", "clip_low"),
        ("grpo", "beta"),
        ("dpo", "clip_low"),
        ("dpo", "kl_coef"),
        ("dpo", "overlong_buffer"),
    ],
)
def test_another_algorithm_s_hyper_parameter_is_refused(algorithm, name):
    with pytest.raises(RecipeError, match=rf"objective\.{name} is set, but {algorithm} (takes only|has no)"):
        check_objective(ObjectiveSection(algorithm=algorithm, **{name: 1}), ROLLOUT)


@pytest.mark.parametrize("algorithm", OBJECTIVES)
def test_own_hyper_parameters_pass(algorithm):
    check_objective(ObjectiveSection(algorithm=algorithm, kl_coef=0.1, overlong_buffer=4), ROLLOUT)


def test_repair_rl_has_no_pairs_for_dpo(base_dir, digits):
    recipe = load_recipe("digits", ["repair_rl.objective.algorithm=dpo"])
    with pytest.raises(RecipeError, match=r"repair_rl\.objective\.algorithm is dpo.*take grpo or another"):
        RlRepair(recipe, digits / "problems_test.parquet", base_dir, base_dir).plan()


def test_an_overlong_buffer_beyond_the_length_limit_is_refused():
    check_objective(ObjectiveSection(overlong_buffer=8), ROLLOUT)
    with pytest.raises(RecipeError, match=r"overlong_buffer is 9, more than rollout\.max_new_tokens \(8\); lower it"):
        check_objective(ObjectiveSection(overlong_buffer=9), ROLLOUT)
