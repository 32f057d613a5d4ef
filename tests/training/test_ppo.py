"""PPO's rows and critic: who is trained on, with what advantages; what the critic learns, keeps and carries over."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.core.values import CriticSettings
from stages.errors import ModelError, RecipeError
from stages.model.batches import encode_prompt
from stages.model.loading import load_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.sections import (
    LoraSection,
    ObjectiveSection,
    OptimizerSection,
    RolloutSection,
    TrainerSection,
    TrainSection,
)
from stages.training.critic import CRITIC
from stages.training.groups import optimization_group, rows_to_work_on, with_token_advantages
from stages.training.losses import PolicyObjective, check_objective
from stages.training.trainer import OPTIMIZER_STATE, Trainer, TrainingRow

PPO = ObjectiveSection(algorithm="ppo")
ROLLOUT = RolloutSection(max_new_tokens=12, temperature=0.7)
LENGTHS = (3, 9, 1, 6)
REWARDS = (1.0, 0.0, 0.25, 1.0)


def group_row(role, reward, mask, *, in_pair):
    return {"role": role, "reward": reward, "mask": mask, "in_pair": in_pair, "ids": list(range(len(mask)))}


CORRECT = group_row("correct", 1.0, [False] * 3, in_pair=False)
ERROR = group_row("error", 0.25, [False, True, False, False], in_pair=True)
REPAIR = group_row("repair", 1.0, [False, True, False], in_pair=True)
LOST = group_row("error", 0.0, [False, False], in_pair=False)
UNGATED = group_row("error", 0.0, [True, True], in_pair=True)


def group(rows, gate, **objective):
    train = TrainSection(gate=gate, objective=ObjectiveSection(algorithm="ppo", **objective))
    return optimization_group(rows, train, ROLLOUT)


@pytest.mark.parametrize(
    ("gate", "error"), [("difference", [0, 1, 0, 0]), ("soft", [2**-0.5, 1, 2**-0.5, 0.5]), ("none", [1, 1, 1, 1])]
)
def test_all_rollouts_are_trained_on_and_the_correct_ones_have_gate_one(gate, error):
    found = group([CORRECT, ERROR, REPAIR, LOST, UNGATED], gate)
    assert [trajectory.row for trajectory in found] == [CORRECT, ERROR, LOST, UNGATED]
    lost = [1, 1] if gate == "none" else [0, 0]
    assert [t.gate_T for t in found] == [[1, 1, 1], pytest.approx(error), lost, [1, 1]]
    assert [t.advantage for t in found] == [1.0, 0.25, 0.0, 0.0]


@pytest.mark.parametrize("rows", [[CORRECT, CORRECT], [LOST, LOST], [ERROR, REPAIR]])
def test_a_problem_that_is_all_right_or_all_wrong_stays(rows):
    assert len(group(rows, "difference")) == sum(row["role"] != "repair" for row in rows)


def test_the_overlong_penalty_is_a_part_of_the_reward():
    """Limit 12, buffer 10: 4 tokens cost 1/5."""
    (found,) = group([ERROR], "none", overlong_buffer=10)
    assert found.advantage == pytest.approx(0.25 - 0.2)


def bare_rows(prompt=None):
    generator = torch.Generator().manual_seed(1)
    return [
        TrainingRow(
            prompt,
            torch.randint(7, 60, (length,), generator=generator).tolist(),
            "correct" if reward == 1 else "error",
            reward,
            [float(t % 2) for t in range(length)],
            [-4.0] * length,
            torch.rand(length, generator=generator).tolist(),
        )
        for length, reward in zip(LENGTHS, REWARDS, strict=True)
    ]


def expected_advantages(rows, gamma, lam):
    """By the definition: discounted sums of temporal differences, then the mean and deviation of all of them."""
    raw = []
    for row in rows:
        after = [*row.values_T[1:], 0.0]
        rewards = [0.0] * len(row.ids)
        rewards[-1] = row.advantage
        deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, row.values_T, strict=True)]
        raw.append([sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))])
    every = [value for values in raw for value in values]
    mean = sum(every) / len(every)
    std = math.sqrt(sum((value - mean) ** 2 for value in every) / (len(every) - 1))
    return raw, [[(value - mean) / (std + 1e-4) for value in values] for values in raw]


@pytest.mark.parametrize("options", [{}, {"gamma": 0.9}, {"gae_lambda": 0.5}])
def test_token_advantages_equal_a_plain_loop(options):
    rows = bare_rows()
    found = with_token_advantages(rows, ObjectiveSection(algorithm="ppo", **options))
    raw, white = expected_advantages(rows, options.get("gamma", 1.0), options.get("gae_lambda", 0.95))
    for row, own, raw_T, white_T in zip(found, rows, raw, white, strict=True):
        assert row.advantage_T == pytest.approx(white_T, rel=1e-4, abs=1e-5)
        assert row.returns_T == pytest.approx([a + v for a, v in zip(raw_T, own.values_T, strict=True)], rel=1e-5)
        assert replace(row, advantage_T=None, returns_T=()) == own


def test_gates_do_not_enter_the_whitening():
    rows = bare_rows()
    shut = [replace(row, gate_T=[0.0] * len(row.ids)) for row in rows]
    pairs = zip(with_token_advantages(rows, PPO), with_token_advantages(shut, PPO), strict=True)
    assert all(a.advantage_T == b.advantage_T for a, b in pairs)


def test_group_relative_rows_stay_as_they_are():
    rows = bare_rows()
    assert with_token_advantages(rows, ObjectiveSection(algorithm="grpo")) == rows


def test_every_row_is_worked_on():
    rows = [replace(row, advantage=0.0, gate_T=[0.0] * len(row.ids)) for row in bare_rows()]
    working, totals = rows_to_work_on(rows, PPO)
    assert working == rows
    assert totals == (len(rows), sum(LENGTHS))


@pytest.fixture(scope="module")
def rows(tiny_vlm, problems, recipe):
    problem = problems[0]
    text = policy_prompt(tiny_vlm.processor, recipe.prompt, problem)
    return with_token_advantages(bare_rows(encode_prompt(tiny_vlm, text)), PPO)


def trainer(vlm, critic_from=Path("nowhere"), resume_from=None, lora=None, **optimizer):
    section = OptimizerSection(**{"learning_rate": 1e-3} | optimizer)
    machine = TrainerSection(lora=lora)
    return Trainer(vlm, section, temperature=0.7, machine=machine, resume_from=resume_from, critic_from=critic_from)


def objective(**options):
    return PolicyObjective(ObjectiveSection(algorithm="ppo", **options), ROLLOUT)


def test_a_fresh_critic_says_nothing_and_learns_the_rewards(tiny_vlm, copy_of, rows):
    own = trainer(copy_of(tiny_vlm), learning_rate=3e-3)
    read = own.with_old_logprobs(rows)
    assert all(row.values_T == [0.0] * len(row.ids) for row in read)
    read = with_token_advantages(read, PPO)
    metrics = [own.step(read, objective(value_clip=10.0)) for _ in range(20)]
    assert metrics[0]["explained_variance"] == pytest.approx(0, abs=1e-6)
    squares = [to**2 / 2 for row in read for to in row.returns_T]
    assert metrics[0]["value_loss"] == pytest.approx(sum(squares) / len(squares), rel=1e-4)
    assert metrics[-1]["explained_variance"] > 0.8
    assert metrics[-1]["value_loss"] < 0.2 * metrics[0]["value_loss"]
    assert any(value != 0 for row in own.with_old_logprobs(rows) for value in row.values_T)


def test_a_fresh_critic_starts_at_the_mean_reward_and_a_learned_one_where_it_was(tiny_vlm, copy_of, rows, tmp_path):
    own = trainer(copy_of(tiny_vlm))
    own.start_critic([])
    own.start_critic([1.0, 0.0, 0.0, 0.5])
    own.start_critic([1.0])
    read = own.with_old_logprobs(rows)
    assert all(row.values_T == [0.375] * len(row.ids) for row in read)
    own.step(with_token_advantages(read, PPO), objective())
    own.save(tmp_path, tmp_path / "model")
    resumed = trainer(load_model(tmp_path / "model"), critic_from=tmp_path)
    resumed.start_critic([0.0])
    first, second = (each.with_old_logprobs(rows) for each in (own, resumed))
    assert [row.values_T for row in first] == [row.values_T for row in second] != [row.values_T for row in read]


def gradient(tiny_vlm, copy_of, rows, **options):
    """That of the text model's last layer and of the critic, and the metrics."""
    vlm = copy_of(tiny_vlm)
    own = trainer(vlm, max_grad_norm=1e9)
    with torch.no_grad():
        own.critic.weight.fill_(0.01)
    metrics = own.step(rows, objective(**options))
    return vlm.model.get_decoder().layers[-1].mlp.down_proj.weight.grad, own.critic.weight.grad, metrics


@pytest.mark.parametrize("rate", [1.0, 5.0])
def test_the_critic_has_a_learning_rate_of_its_own(tiny_vlm, copy_of, rows, rate):
    """Adam's first step is the learning rate, whatever the gradient's size."""
    own = Trainer(
        copy_of(tiny_vlm),
        OptimizerSection(learning_rate=1e-3, warmup_steps=2),
        temperature=0.7,
        critic_from=Path("nowhere"),
        critic_rate=rate,
    )
    assert own.step(rows, objective())["learning_rate"] == 5e-4
    assert own.critic.weight.abs().max().item() == pytest.approx(5e-4 * rate, rel=1e-3)


def test_closed_tokens_train_the_critic_and_its_backbone_alone(tiny_vlm, copy_of, rows):
    shut = [replace(row, gate_T=[0.0] * len(row.ids)) for row in rows]
    backbone, critic, metrics = gradient(tiny_vlm, copy_of, shut)
    assert backbone.any()
    assert critic.any()
    assert metrics["loss"] == pytest.approx(CriticSettings().value_coef * metrics["value_loss"], rel=1e-5)
    without, critic, _ = gradient(tiny_vlm, copy_of, shut, value_coef=0.0)
    assert not without.any()
    assert not critic.any()


def test_the_gate_has_no_part_in_the_value_loss(tiny_vlm, copy_of, rows):
    shut = [replace(row, gate_T=[0.0] * len(row.ids)) for row in rows]
    (_, closed, told), (_, open_, metrics) = (gradient(tiny_vlm, copy_of, some) for some in (shut, rows))
    torch.testing.assert_close(closed, open_)
    for name in ("value_loss", "value_clip_fraction", "explained_variance"):
        assert told[name] == pytest.approx(metrics[name])


def test_the_value_clip_cuts_gradients(tiny_vlm, copy_of, rows):
    (_, free, wide), (_, cut, tight) = (gradient(tiny_vlm, copy_of, rows, value_clip=clip) for clip in (10.0, 0.01))
    assert wide["value_clip_fraction"] == 0
    assert 0 < tight["value_clip_fraction"] < 1
    assert tight["value_loss"] > wide["value_loss"]
    assert not torch.allclose(free, cut)


def test_a_row_without_values_is_refused(tiny_vlm, copy_of, rows):
    with pytest.raises(ValueError, match=r"response tokens, 0 values; .* values and returns need one each"):
        trainer(copy_of(tiny_vlm)).step([replace(rows[0], values_T=())], objective())


def test_the_critic_goes_on_where_it_stopped(tiny_vlm, copy_of, rows, tmp_path):
    through = trainer(copy_of(tiny_vlm))
    through.step(rows, objective())
    through.save(tmp_path, tmp_path / "model")
    assert json.loads((tmp_path / CRITIC / "config.json").read_text()) == {"hidden_size": 128}
    assert {name: value.shape for name, value in load_file(tmp_path / CRITIC / "model.safetensors").items()} == {
        "weight": (1, 128), "bias": (1,), "center": (),
    }  # fmt: skip
    through.step(rows[::-1], objective())
    resumed = trainer(load_model(tmp_path / "model"), critic_from=tmp_path, resume_from=tmp_path)
    resumed.step(rows[::-1], objective())
    for (name, first), second in zip(
        through.reader.module.named_parameters(), resumed.reader.module.parameters(), strict=True
    ):
        assert torch.equal(first, second), name
    (tmp_path / CRITIC / OPTIMIZER_STATE).unlink()
    anew = trainer(load_model(tmp_path / "model"), critic_from=tmp_path, resume_from=tmp_path)
    anew.step(rows[::-1], objective())
    assert not torch.equal(anew.critic.weight, resumed.critic.weight)


def test_a_critic_carries_over_beside_adapters(tiny_vlm, copy_of, rows, tmp_path):
    own = trainer(copy_of(tiny_vlm), lora=LoraSection(rank=2, alpha=4))
    own.step(rows, objective())
    own.save(tmp_path, tmp_path / "model")
    assert own.critic.weight.any()
    resumed = trainer(load_model(tmp_path / "model"), critic_from=tmp_path, lora=LoraSection(rank=2, alpha=4))
    assert torch.equal(resumed.critic.weight, own.critic.weight)
    assert resumed.optimizer.state[resumed.critic.weight]["step"] == 1


def test_another_model_s_critic_is_refused(tiny_vlm, copy_of, tmp_path):
    own = trainer(copy_of(tiny_vlm))
    own.save(tmp_path, tmp_path / "model")
    (tmp_path / CRITIC / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(ModelError, match="hidden size 64 beside a model of 128; delete the folder"):
        trainer(copy_of(tiny_vlm), critic_from=tmp_path)


def test_a_critic_that_is_not_finite_is_refused(tiny_vlm, copy_of, tmp_path):
    own = trainer(copy_of(tiny_vlm))
    own.critic.weight.data[0, 3] = math.nan
    own.save(tmp_path, tmp_path / "model")
    with pytest.raises(ModelError, match=f"{CRITIC}: tensor weight holds NaN or infinity"):
        trainer(copy_of(tiny_vlm), critic_from=tmp_path)


def test_an_algorithm_without_critic_leaves_one_alone(tiny_vlm, copy_of, rows, tmp_path):
    own = trainer(copy_of(tiny_vlm))
    own.step(rows, objective())
    own.save(tmp_path, tmp_path / "model")
    other = trainer(load_model(tmp_path / "model"), critic_from=None, resume_from=tmp_path)
    other.step(rows, PolicyObjective(ObjectiveSection(), ROLLOUT))
    other.save(tmp_path / "next", tmp_path / "next" / "model")
    assert not (tmp_path / "next" / CRITIC).exists()


@pytest.mark.parametrize("name", ["gamma", "gae_lambda", "value_clip", "value_coef", "critic_rate"])
def test_a_critic_s_setting_is_refused_where_there_is_none(name):
    check_objective(ObjectiveSection(algorithm="ppo", **{name: 0.5}), ROLLOUT)
    with pytest.raises(RecipeError, match=rf"objective\.{name} is set, but grpo has no critic"):
        check_objective(ObjectiveSection(**{name: 0.5}), ROLLOUT)


def test_gated_ppo_skips_no_problem():
    with pytest.raises(RecipeError, match=r"train\.gate difference, but masks\.on_no_correct is skip.* to repair"):
        load_recipe("digits", ["train.objective.algorithm=ppo"])
    for other in ("masks.on_no_correct=repair", "train.gate=none"):
        assert load_recipe("digits", ["train.objective.algorithm=ppo", other]).train.objective.algorithm == "ppo"
