"""What the sampler's log-probs do in an optimizer step: metrics, and weights where the recipe caps them."""

import math
from dataclasses import replace

import pytest
import torch

from data.strips.tiny_model import plain_logprobs
from stages.core.objectives import OBJECTIVES
from stages.errors import RecipeError
from stages.model.batches import encode_prompt, response_batch
from stages.model.prompts import policy_prompt
from stages.sections import ObjectiveSection, OptimizerSection, RolloutSection, TrainerSection
from stages.training.groups import with_token_advantages
from stages.training.losses import PolicyObjective, check_objective, mismatch_metrics
from stages.training.trainer import Trainer, TrainingRow

ROLLOUT = RolloutSection(max_new_tokens=12, temperature=0.7)
LENGTHS = (3, 9, 6)
ADVANTAGES = (1.5, -0.7, 0.4)
DELTAS = (0.3, -0.2, 0.05, 1.1)
"""Of one token after the other: old minus sampler's log-prob."""


def shifted(row):
    """The row with a sampler whose log-probs are its old ones less `DELTAS`, in turn."""
    return replace(row, sampler_logprobs_T=[old - DELTAS[t % 4] for t, old in enumerate(row.old_logprobs_T)])


@pytest.fixture(scope="module")
def rows(tiny_vlm, problems, recipe):
    """An error, a repair and a correct rollout; old log-probs are the model's own, and the sampler's the same."""
    rng = torch.Generator().manual_seed(2)
    prompts = [policy_prompt(tiny_vlm.processor, recipe.prompt, p) for p in problems[:3]]
    encoded = [encode_prompt(tiny_vlm, prompt) for prompt in prompts]
    ids = [torch.randint(7, len(tiny_vlm.tokenizer), (n,), generator=rng).tolist() for n in LENGTHS]
    with torch.no_grad():
        own_BT = plain_logprobs(tiny_vlm, response_batch(tiny_vlm, encoded, ids), temperature=0.7)
    own = [own_BT[i, :n].tolist() for i, n in enumerate(LENGTHS)]
    roles = ("error", "repair", "correct")
    return [
        TrainingRow(
            prompt, ids[i], roles[i], ADVANTAGES[i], [float(t % 3 > 0) for t in range(LENGTHS[i])], own[i],
            [0.1] * LENGTHS[i], sampler_logprobs_T=None if roles[i] == "repair" else own[i],
        )
        for i, prompt in enumerate(encoded)
    ]  # fmt: skip


def step(vlm, rows, tokens=10_000, **options):
    """Gradients of one step on this model, and the loss."""
    section = ObjectiveSection(**options)
    own = Trainer(
        vlm,
        OptimizerSection(learning_rate=1e-3, max_grad_norm=1e9),
        temperature=0.7,
        machine=TrainerSection(tokens_per_micro_batch=tokens),
    )
    metrics = own.step(with_token_advantages(rows, section), PolicyObjective(section, ROLLOUT))
    return {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}, metrics["loss"]


@pytest.mark.parametrize("algorithm", OBJECTIVES)
def test_a_cap_changes_nothing_where_the_sampler_is_the_trainer(tiny_vlm, copy_of, rows, algorithm):
    plain, loss = step(copy_of(tiny_vlm), rows, algorithm=algorithm)
    weighted, weighted_loss = step(copy_of(tiny_vlm), rows, algorithm=algorithm, importance_cap=100.0)
    assert weighted_loss == loss
    assert all(torch.equal(weighted[name], gradient) for name, gradient in plain.items())


def test_without_a_cap_the_sampler_has_no_part_in_the_loss(tiny_vlm, copy_of, rows):
    plain, loss = step(copy_of(tiny_vlm), rows)
    found, found_loss = step(copy_of(tiny_vlm), [row if row.role == "repair" else shifted(row) for row in rows])
    assert found_loss == loss
    assert all(torch.equal(found[name], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize("cap", [1.0, 1.3, 10.0])
def test_a_step_weighs_each_sampled_token_and_no_repair(tiny_vlm, copy_of, rows, cap):
    """At ratios of 1 DAPO's term is `-w A gate`, over all tokens."""
    sampled = [row if row.role == "repair" else shifted(row) for row in rows]
    for tokens in (1, 10_000):
        found, loss = step(copy_of(tiny_vlm), sampled, tokens, algorithm="dapo", importance_cap=cap)
        total = 0.0
        for row in rows:
            for t, gate in enumerate(row.gate_T):
                weight = 1.0 if row.role == "repair" else min(math.exp(DELTAS[t % 4]), cap)
                total -= weight * row.advantage * gate
        assert loss == pytest.approx(total / sum(LENGTHS), abs=1e-5)
    by_gate = [
        replace(row, gate_T=[g * min(math.exp(DELTAS[t % 4]), cap) for t, g in enumerate(row.gate_T)])
        if row.role != "repair"
        else row
        for row in rows
    ]
    expected, _ = step(copy_of(tiny_vlm), by_gate, algorithm="dapo")
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_metrics_are_of_all_tokens_that_the_policy_sampled(rows):
    sampled = [row if row.role == "repair" else shifted(row) for row in rows]
    deltas = [DELTAS[t % 4] for row in rows if row.role != "repair" for t in range(len(row.ids))]
    weights = [math.exp(delta) for delta in deltas]
    assert mismatch_metrics(sampled) == pytest.approx(
        {
            "mismatch_mean": sum(map(abs, deltas)) / len(deltas),
            "mismatch_max": 1.1,
            "effective_sample_size": sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights)),
        },
        rel=1e-4,
    )
    assert mismatch_metrics([row for row in rows if row.role == "repair"]) == {}


def test_a_row_of_another_length_is_refused(tiny_vlm, copy_of, rows):
    short = replace(rows[0], sampler_logprobs_T=[-1.0])
    with pytest.raises(ValueError, match="3 response tokens, 1 values; log-probs, gates"):
        mismatch_metrics([short])
    with pytest.raises(ValueError, match="3 response tokens, 1 values; log-probs, gates"):
        step(copy_of(tiny_vlm), [short], importance_cap=2.0)


def test_dpo_takes_no_cap():
    with pytest.raises(RecipeError, match=r"objective\.importance_cap is set, but dpo has no use"):
        check_objective(ObjectiveSection(algorithm="dpo", importance_cap=2.0), ROLLOUT)
    for algorithm in OBJECTIVES:
        check_objective(ObjectiveSection(algorithm=algorithm, importance_cap=2.0), ROLLOUT)
