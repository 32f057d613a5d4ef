"""PRIME on tiny models: the reward model learns outcomes, and its log-ratio makes the policy's advantages."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.strips.tiny_model import plain_logprobs
from stages.artifacts.columns import GROUPS, METRICS
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows, write_rows
from stages.errors import RecipeError
from stages.model.batches import encode_prompt, response_batch
from stages.model.loading import load_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.s5_train_policy import TrainPolicy
from stages.sections import OptimizerSection, PrimeSection, TrainerSection
from stages.training.groups import rows_to_work_on
from stages.training.losses import PolicyObjective
from stages.training.prime import PRM, OutcomeLoss, ProcessRewards
from stages.training.trainer import MACHINE_METRICS, OPTIMIZER_STATE, Trainer, TrainingRow

TEMPERATURE = 0.7
RIGHT, WRONG = 20, 21
PRIME = (
    "train.advantage=prime",
    "train.gate=none",
    "train.problems_per_step=2",
    "train.prime.optimizer.learning_rate=1e-4",
)


def own_logprobs(vlm, prompt, ids):
    with torch.no_grad():
        return plain_logprobs(vlm, response_batch(vlm, [prompt], [ids]), temperature=TEMPERATURE)[0].tolist()


@pytest.fixture(scope="module")
def rows(tiny_vlm, problems, recipe):
    """Three groups of three responses of unequal lengths, which are correct where one token is among them."""
    rng = np.random.default_rng(5)
    made = []
    for index in range(3):
        problem = problems[index]
        text = policy_prompt(tiny_vlm.processor, recipe.prompt, problem)
        prompt = encode_prompt(tiny_vlm, text)
        for role in ("correct", "error", "correct" if index else "error"):
            ids = rng.integers(30, 60, int(rng.integers(2, 8))).tolist()
            ids.insert(1, RIGHT if role == "correct" else WRONG)
            made.append(TrainingRow(prompt, ids, role, 0.0, [1.0] * len(ids), own_logprobs(tiny_vlm, prompt, ids)))
    return made


def trainer(vlm, tokens=10_000, **optimizer):
    section = OptimizerSection(**{"learning_rate": 1e-3} | optimizer)
    return Trainer(vlm, section, temperature=TEMPERATURE, machine=TrainerSection(tokens_per_micro_batch=tokens))


def weights(vlm):
    return [p.detach().clone() for p in vlm.model.parameters()]


def test_the_model_starts_at_a_coin_s_loss_and_learns_the_outcomes(tiny_vlm, copy_of, rows):
    learner = trainer(copy_of(tiny_vlm), learning_rate=3e-3)
    told = [learner.step(rows, OutcomeLoss(0.05)) for _ in range(12)]
    assert told[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert told[-1]["loss"] < 0.6 * told[0]["loss"]
    assert told[-1]["accuracy"] == 1


@pytest.mark.parametrize("tokens", [1, 10_000])
def test_the_outcome_gradient_is_the_plain_one(tiny_vlm, copy_of, rows, tokens):
    """Old log-probs are moved off the model's own, so that chances differ from a half."""
    moved = [replace(row, old_logprobs_T=[value - 3.0 * (i % 3) for value in row.old_logprobs_T])
             for i, row in enumerate(rows)]  # fmt: skip
    found, plain = copy_of(tiny_vlm), copy_of(tiny_vlm)
    trainer(found, tokens, max_grad_norm=1e9).step(moved, OutcomeLoss(0.3))
    loss = 0.0
    for row in moved:
        batch = response_batch(plain, [row.prompt], [row.ids])
        logprobs_T = plain_logprobs(plain, batch, temperature=TEMPERATURE)[0]
        chance = torch.sigmoid(0.3 * (logprobs_T - torch.tensor(row.old_logprobs_T)).sum())
        loss = loss - (chance if row.role == "correct" else 1 - chance).log() / len(moved)
    loss.backward()
    for own, expected in zip(found.model.parameters(), plain.model.parameters(), strict=True):
        assert (own.grad - expected.grad).norm() <= 1e-5 * expected.grad.norm() > 0


def test_advantages_are_of_the_model_after_its_update(tiny_vlm, copy_of, rows):
    """Against the log-probs that the updated model itself gives, and eq. 5 term by term."""
    vlm = copy_of(tiny_vlm)
    before = weights(vlm)
    section = PrimeSection(beta=0.5, gamma=0.9)
    judged, told = ProcessRewards(trainer(vlm), section).with_advantages(rows)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(vlm), strict=True))
    assert [(r.prompt, r.ids, r.role, r.old_logprobs_T) for r in judged] == [
        (r.prompt, r.ids, r.role, r.old_logprobs_T) for r in rows
    ]
    rewards = [0.5 * (np.array(own_logprobs(vlm, r.prompt, r.ids)) - np.array(r.old_logprobs_T)) for r in rows]
    for i, row in enumerate(judged):
        others = [j for j in range(3 * (i // 3), 3 * (i // 3) + 3) if j != i]
        baseline = sum(rewards[j].mean() for j in others) / 2
        outcome = (row.role == "correct") - sum(rows[j].role == "correct" for j in others) / 2
        expected = [
            outcome + sum(0.9 ** (s - t) * (rewards[i][s] - baseline) for s in range(t, len(row.ids)))
            for t in range(len(row.ids))
        ]
        assert row.advantage_T == pytest.approx(expected, abs=1e-4)
    wrong = np.concatenate([own for own, row in zip(rewards, rows, strict=True) if row.role == "error"])
    assert told["process_reward/error"] == pytest.approx(wrong.mean(), abs=1e-4)
    assert told["process_reward/correct"] > told["process_reward/error"]
    assert told["prm_loss"] == pytest.approx(np.log(2), abs=1e-5)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_token_advantages_are_what_the_policy_s_step_takes(tiny_vlm, copy_of, rows, algorithm):
    """At a ratio of 1 the gradient is that of the tokens' log-probs, each times its own advantage.

    GRPO means over a response's tokens, then over responses, PPO over all tokens.
    """
    recipe = load_recipe("digits", [*PRIME, f"train.objective.algorithm={algorithm}"])
    advantages = [np.random.default_rng(i).normal(size=len(row.ids)).tolist() for i, row in enumerate(rows)]
    judged = [replace(row, advantage_T=own) for row, own in zip(rows, advantages, strict=True)]
    working, totals = rows_to_work_on(judged, recipe.train.objective)
    assert working == judged
    found, plain = copy_of(tiny_vlm), copy_of(tiny_vlm)
    trainer(found, 100, max_grad_norm=1e9).step(
        working, PolicyObjective(recipe.train.objective, recipe.rollout, with_critic=False), totals
    )
    loss = 0.0
    for row in judged:
        batch = response_batch(plain, [row.prompt], [row.ids])
        logprobs_T = plain_logprobs(plain, batch, temperature=TEMPERATURE)[0]
        tokens = len(row.ids) * len(judged) if algorithm == "grpo" else sum(len(one.ids) for one in judged)
        loss = loss - (logprobs_T * torch.tensor(row.advantage_T)).sum() / tokens
    loss.backward()
    for own, expected in zip(found.model.parameters(), plain.model.parameters(), strict=True):
        assert (own.grad - expected.grad).norm() <= 1e-4 * expected.grad.norm() > 0


def test_a_row_without_an_advantage_is_not_worked_on(rows, recipe):
    silent = [replace(row, advantage=1.0, advantage_T=[0.0] * len(row.ids)) for row in rows[:2]]
    assert rows_to_work_on(silent, recipe.train.objective)[0] == []


@pytest.fixture(scope="module")
def groups(tmp_path_factory, base_vlm, repair_problems, recipe):
    """Of each of three problems a wrong response, a right one and, where it is to be ignored, the repair."""
    folder = tmp_path_factory.mktemp("groups")
    written = []
    for problem in repair_problems[:3]:
        text = policy_prompt(base_vlm.processor, recipe.prompt, problem)
        prompt = encode_prompt(base_vlm, text)
        sides = [(0, "error", "error", 0.0), (0, "repair", "repair", 1.0), (1, "repair", "correct", 1.0)]
        for sample, column, role, reward in sides:
            ids = [*base_vlm.tokenizer(problem.extra[column])["input_ids"], base_vlm.end_ids[0]]
            written.append(
                {
                    "problem_id": problem.problem_id,
                    "sample": sample,
                    "role": role,
                    "in_pair": False,
                    "ids": ids,
                    "reward": reward,
                    "mask": [False] * len(ids),
                    "old_logprobs": own_logprobs(base_vlm, prompt, ids),
                    "finish_reason": "stop",
                }
            )
    write_rows(folder / f"{GROUPS.name}-00000.parquet", GROUPS, written)
    return folder


def train(groups, digits, policy, out, *settings):
    recipe = load_recipe("digits", [*PRIME, *settings])
    execute(TrainPolicy(recipe, groups, digits / "repair_set.parquet", policy), out)
    metrics = {}
    for row in iterate_rows(out / f"{METRICS.name}.parquet", METRICS):
        metrics.setdefault(row["metric"], {})[row["step"]] = row["value"]
    return metrics


def test_train_policy_carries_the_reward_model_over_the_rounds(groups, digits, base_dir, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    told = train(groups, digits, base_dir, first)
    assert told["prm_loss"].keys() == told["loss"].keys() == {1, 2}
    assert told["prm_loss"][1] == pytest.approx(np.log(2), abs=1e-3)
    assert {"prm_accuracy", "prm_grad_norm", "process_reward/correct", "process_reward/error"} <= told.keys()
    assert "ratio_mean/repair" not in told
    assert (first / PRM / OPTIMIZER_STATE).is_file()
    base, policy, prm = (
        load_model(path).model.state_dict() for path in (base_dir, first / "model", first / PRM / "model")
    )
    assert all(any(not torch.equal(one[name], other[name]) for name in one)
               for one, other in ((base, policy), (base, prm), (policy, prm)))  # fmt: skip
    # The second round starts from the first one's reward model, in its first step already away from a coin's loss.
    again = train(groups, digits, first, second)
    assert again["prm_loss"][3] < told["prm_loss"][1] - 1e-4
    assert again["prm_learning_rate"][3] == pytest.approx(1e-4)


def test_under_ppo_it_takes_the_critic_s_place(groups, digits, base_dir, tmp_path):
    told = train(groups, digits, base_dir, tmp_path / "ppo", "train.objective.algorithm=ppo")
    assert told["grad_norm"][1] > 0
    assert told["prm_loss"].keys() == told["loss"].keys() == {1, 2}
    assert "value_loss" not in told
    assert (tmp_path / "ppo" / PRM / OPTIMIZER_STATE).is_file()
    assert not (tmp_path / "ppo" / "critic").exists()
    assert not list((tmp_path / "ppo").glob("values-*"))
    with pytest.raises(
        RecipeError, match=r"objective\.gamma is set, but ppo has no critic beside train\.advantage=prime"
    ):
        train(groups, digits, base_dir, tmp_path / "set", "train.objective={algorithm: ppo, gamma: 0.9}")


def test_beta_gamma_and_the_learning_rate_reach_the_step(groups, digits, base_dir, tmp_path):
    def of(name, *settings):
        told = train(groups, digits, base_dir, tmp_path / name, *settings)
        return {metric: told[metric] for metric in told if metric not in MACHINE_METRICS}

    plain = of("plain")
    beta, gamma = of("beta", "train.prime.beta=1.0"), of("gamma", "train.prime.gamma=0.5")
    rate = of("rate", "train.prime.optimizer.learning_rate=1e-6")
    assert beta["process_reward/correct"][1] > 5 * plain["process_reward/correct"][1] > 0
    assert gamma["process_reward/correct"][1] == plain["process_reward/correct"][1]
    assert gamma["grad_norm"][1] != plain["grad_norm"][1]
    assert rate["prm_learning_rate"][1] == 1e-6
    assert 0 < rate["process_reward/correct"][1] < plain["process_reward/correct"][1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.gate=difference", "advantage is prime, but gate is difference: .*set gate=none"),
        ("train.gate=entropy", "advantage is prime, but gate is entropy"),
        ("train.objective.algorithm=dpo", "which dpo has no use for"),
        ("train.objective.overlong_buffer=4", "leave objective.overlong_buffer out"),
    ],
)
def test_what_prime_cannot_go_with_is_refused(setting, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits", [*PRIME, setting])
