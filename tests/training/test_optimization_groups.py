"""Which trajectories of a problem are trained on, with what advantage and gate."""

import math

import pytest

from stages.core.objectives import OBJECTIVES
from stages.errors import RecipeError
from stages.recipe import load_recipe
from stages.s2_rl_repair import RlRepair
from stages.sections import ObjectiveSection, RolloutSection, TrainSection
from stages.training.groups import left_out, optimization_group, rows_to_work_on
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


def group(rows, gate="difference", algorithm="grpo", of="pairs", **objective):
    section = TrainSection(gate=gate, group=of, objective=ObjectiveSection(algorithm=algorithm, **objective))
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


def test_what_a_gate_leaves_out_keeps_the_leak():
    """Pairs alone are gated: a rollout beside them has gate 1 all the same."""

    def gates(gate, leak, rows=GROUP):
        section = TrainSection(gate=gate, group="all", leak=leak)
        return [trajectory.gate_T for trajectory in optimization_group(rows, section, ROLLOUT)]

    assert gates("difference", 0.25) == [[1] * 3, [0.25, 1, 0.25, 0.25], [0.25, 1, 0.25], [1] * 2]
    half = 2**-0.5
    assert gates("soft", 0.625)[1:3] == [pytest.approx([half, 1, half, 0.625]), pytest.approx([half, 1, half])]
    assert gates("soft", 0.0) == [list(trajectory.gate_T) for trajectory in group(GROUP, "soft", of="all")]


def test_an_evened_pair_weighs_as_much_as_an_ungated_response():
    section = TrainSection(gate="difference", group="all", evenness=1.0)
    found = [trajectory.gate_T for trajectory in optimization_group(GROUP, section, ROLLOUT)]
    assert found == [[1] * 3, [0, 4, 0, 0], [0, 3, 0], [1] * 2]


@pytest.mark.parametrize("gate", ["difference", "soft"])
def test_an_error_kept_without_repair_has_gate_one(gate):
    found = group([CORRECT, ERROR, REPAIR, UNGATED], gate)
    assert [trajectory.row for trajectory in found] == [ERROR, REPAIR, UNGATED]
    assert list(found[2].gate_T) == [1, 1]


@pytest.mark.parametrize("gate", ["difference", "soft"])
@pytest.mark.parametrize("algorithm", GROUP_RELATIVE)
def test_without_a_repair_the_group_of_all_is_the_ungated_one(gate, algorithm):
    rows = [CORRECT, LOST, CORRECT | {"reward": 0.9}, LOST | {"reward": 0.2}]
    found = group(rows, gate, algorithm, "all", overlong_buffer=6)
    assert found == group(rows, "none", algorithm, overlong_buffer=6)
    assert len(found) == 4


@pytest.mark.parametrize("gate", ["difference", "soft"])
@pytest.mark.parametrize("algorithm", GROUP_RELATIVE)
def test_of_repaired_errors_without_a_correct_rollout_the_group_of_all_is_the_paper_s(gate, algorithm):
    rows = [ERROR, REPAIR, ERROR | {"reward": 0.3}, REPAIR | {"mask": [True, False, False]}]
    found = group(rows, gate, algorithm, "all", overlong_buffer=6)
    assert found == group(rows, gate, algorithm, overlong_buffer=6)
    assert len(found) == 4


@pytest.mark.parametrize("lost", [LOST, UNGATED])
@pytest.mark.parametrize("gate", ["difference", "soft"])
def test_the_group_of_all_gates_its_pairs_alone(gate, lost):
    """Against a loop over the rows; an error without a repair has gate 1 whatever `masks.no_feasible` was."""
    rows = [CORRECT, ERROR | {"reward": 0.25}, REPAIR, lost, CORRECT | {"ids": [4, 5], "mask": [False] * 2}]
    mean = sum(own["reward"] for own in rows) / 5
    deviation = (sum((own["reward"] - mean) ** 2 for own in rows) / 4) ** 0.5
    found = group(rows, gate, of="all")
    assert [trajectory.row for trajectory in found] == rows
    for own, trajectory in zip(rows, found, strict=True):
        marked = [t for t, is_marked in enumerate(own["mask"]) if is_marked]
        token_advantages = []
        for t in range(len(own["ids"])):
            weight = 1.0
            if own["role"] == "repair" or own["reward"] == 0.25:
                away = min(abs(t - other) for other in marked)
                weight = 2 ** (-away / 2) if gate == "soft" else float(away == 0)
            token_advantages.append((own["reward"] - mean) / (deviation + 1e-4) * weight)
        assert [trajectory.advantage * weight for weight in trajectory.gate_T] == pytest.approx(token_advantages)


def test_the_group_of_all_has_no_gradient_without_contrast():
    assert {trajectory.advantage for trajectory in group([CORRECT, CORRECT], of="all")} == {0}
    assert {trajectory.advantage for trajectory in group([LOST, LOST, LOST], of="all")} == {0}
    assert group([LOST, LOST], algorithm="dapo", of="all") == []
    assert [t.row for t in group([ERROR, REPAIR, LOST], algorithm="dapo", of="all")] == [ERROR, REPAIR, LOST]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["train.gate=none"], "gate is none, which takes the rollouts alone"),
        (["train.objective.algorithm=ppo"], r"objective\.algorithm is ppo, which takes the rollouts alone"),
        (["train.objective.algorithm=dpo"], r"objective\.algorithm is dpo, which takes pairs alone"),
    ],
)
def test_what_leaves_the_group_no_choice_is_refused(settings, told):
    with pytest.raises(RecipeError, match=rf"train: group is all, but {told}; set group=pairs"):
        load_recipe("digits", ["train.group=all", *settings])


def test_every_variant_of_the_paper_s_tables_runs_beside_the_group_of_all():
    recipe = load_recipe("digits", ["train.group=all"])
    for name, variant in recipe.ablate.variants.items():
        of = load_recipe("digits", ["train.group=all", *variant.set]).train
        assert (of.group == "all") == (of.gate != "none"), name


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


def sampled(row, sample, *probabilities):
    return {**row, "sample": sample, "old_logprobs": [math.log(p) for p in probabilities]}


def test_an_error_whose_repair_the_policy_does_not_believe_counts_as_not_repaired():
    """The second token of each repair is marked; the first has probability 0.01 and does not count."""
    rows = [
        sampled(CORRECT, 0, 0.9, 0.9, 0.9),
        sampled(ERROR, 1, 0.9, 0.01, 0.9, 0.9),
        sampled(REPAIR, 1, 0.01, 0.05, 0.9),
        sampled(ERROR, 2, 0.9, 0.9, 0.9, 0.9),
        sampled(REPAIR, 2, 0.01, 0.04, 0.9),
    ]
    unrepaired = {**rows[3], "in_pair": False, "mask": [False] * 4}

    def kept(of, support):
        section = TrainSection(gate="difference", group=of, support=support)
        found = optimization_group(rows, section, ROLLOUT)
        return [trajectory.row for trajectory in found], [list(trajectory.gate_T) for trajectory in found]

    marked = [[0, 1, 0, 0], [0, 1, 0]]
    assert kept("pairs", 0.0) == (rows[1:], marked * 2)
    assert kept("pairs", 0.045) == (rows[1:3], marked)
    assert kept("all", 0.045) == ([*rows[:3], unrepaired], [[1] * 3, *marked, [1] * 4])
    assert left_out(rows, TrainSection(support=0.045)) is None
    assert left_out(rows, TrainSection(support=0.06)) == "no_repaired_error"


def test_a_repair_without_a_marked_token_is_believed():
    """Of a deletion, where gaps have no anchor, the error's side alone is marked."""
    repair = sampled({**REPAIR, "mask": [False] * 3}, 1, 0.001, 0.001, 0.001)
    rows = [sampled(ERROR, 1, *[0.9] * 4), repair]
    found = optimization_group(rows, TrainSection(support=0.5), ROLLOUT)
    assert [trajectory.row for trajectory in found] == rows
