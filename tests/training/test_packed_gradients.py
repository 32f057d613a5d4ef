"""A step's gradients are those of the plain computation: padded rows, every logit, every token."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.strips.tiny_model import plain_logprobs
from stages.core.alignment import difference_masks
from stages.core.objectives import OBJECTIVES, policy_loss
from stages.model.batches import encode_prompt, response_batch
from stages.model.critic import ValueHead
from stages.model.logprobs import LogprobReader
from stages.model.prompts import policy_prompt
from stages.sections import ObjectiveSection, OptimizerSection, RolloutSection, TrainerSection
from stages.training.groups import with_token_advantages
from stages.training.losses import PolicyObjective, SupervisedLoss
from stages.training.preferences import PreferenceObjective
from stages.training.trainer import Trainer, TrainingRow

TEMPERATURE = 0.7
ROLLOUT = RolloutSection(max_new_tokens=32, temperature=TEMPERATURE)
# The algorithms' own bounds, wide enough that some tokens are inside and some outside of them.
HYPER = {name: {} for name in OBJECTIVES} | {
    "gspo": {"clip_low": 0.01, "clip_high": 0.01},
    "cispo": {"clip_high": 1.05},
}


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_internvl"])
def vlm(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def rows(vlm, problems, recipe):
    """Three groups, of one, two and no images: errors of unequal lengths beside their repairs, old log-probs near the
    model's own."""
    rng = np.random.default_rng(3)
    allowed = np.setdiff1d(np.arange(len(vlm.tokenizer)), vlm.banned_ids)
    made = []
    for group, images in enumerate((problems[0].images, (*problems[1].images, *problems[2].images), ())):
        text = policy_prompt(vlm.processor, recipe.prompt, replace(problems[group], images=images))
        prompt = encode_prompt(vlm, text)
        for length in (20, 13):
            error = rng.choice(allowed, length).tolist()
            repair = error[:6] + rng.choice(allowed, 2).tolist() + error[7:10] + error[11:]
            masks = difference_masks(error, repair)
            made.append((prompt, error, "error", -0.8 - 0.1 * group, masks.error_T))
            made.append((prompt, repair, "repair", 0.7 + 0.1 * length, masks.repair_T))
    return [
        TrainingRow(prompt, ids, role, advantage, mask_T.astype(float).tolist(), near_T)
        for (prompt, ids, role, advantage, mask_T), near_T in zip(made, near_own(vlm, made, rng), strict=True)
    ]


def near_own(vlm, made, rng):
    for prompt, ids, *_ in made:
        with torch.no_grad():
            own_T = plain_logprobs(vlm, response_batch(vlm, [prompt], [ids]), temperature=TEMPERATURE)[0]
        yield (own_T.numpy() + rng.normal(0, 0.05, len(ids))).tolist()


def gradients(vlm, backward, critic=None):
    vlm.model.zero_grad()
    backward()
    parameters = dict(vlm.model.named_parameters()) | dict(critic.named_parameters() if critic else {})
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def with_values(rows):
    """Rows as PPO trains on them, old values near what the critic of `shaken` says."""
    rng = np.random.default_rng(5)
    rows = [replace(row, values_T=rng.normal(0.3, 0.3, len(row.ids)).tolist()) for row in rows]
    return with_token_advantages(rows, ObjectiveSection(algorithm="ppo"))


def shaken(critic):
    """The critic with weights that are not 0."""
    with torch.no_grad():
        critic.weight.copy_(torch.randn(critic.weight.shape, generator=torch.Generator().manual_seed(0)) / 10)
        critic.bias.fill_(0.2)
    return critic


def plain_value_loss(vlm, critic, batch, rows):
    """Token by token from the hidden states of padded rows: half the larger squared error."""
    length = batch.response_mask_BT.shape[1]
    hidden_BTH = vlm.model.base_model(**batch.inputs, use_cache=False).last_hidden_state[:, -length - 1 : -1]
    values_BT = hidden_BTH @ critic.weight[0] + critic.bias
    total = 0.0
    for row, values_T in zip(rows, values_BT, strict=True):
        for value, old, to in zip(values_T, row.values_T, row.returns_T, strict=False):
            total = total + max((value - to) ** 2, (old + (value - old).clamp(-0.2, 0.2) - to) ** 2) / 2
    return total / batch.response_mask_BT.sum()


def plain_gradients(vlm, rows, algorithm, hyper, reference=None):
    """One padded batch of whole rows through the model's own logits."""
    batch = response_batch(vlm, [row.prompt for row in rows], [row.ids for row in rows])
    mask_BT = batch.response_mask_BT
    critic = shaken(ValueHead(vlm.model.lm_head.weight.shape[1])) if algorithm == "ppo" else None

    def padded(values):
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(value_T) for value_T in values], batch_first=True)

    def backward():
        logprobs_BT = plain_logprobs(vlm, batch, temperature=TEMPERATURE)
        if algorithm == "supervised":
            (-logprobs_BT.sum() / mask_BT.sum()).backward()
            return
        with torch.no_grad():
            reference_BT = reference and plain_logprobs(reference, batch, temperature=TEMPERATURE)
        loss = policy_loss(
            algorithm,
            logprobs_BT=logprobs_BT,
            old_logprobs_BT=padded([row.old_logprobs_T for row in rows]),
            advantages_B=padded([row.advantage_T for row in rows])
            if critic
            else torch.tensor([row.advantage for row in rows]),
            response_mask_BT=mask_BT,
            gate_BT=None if rows[0].gate_T is None else padded([row.gate_T for row in rows]),
            ref_logprobs_BT=reference_BT,
            **({"max_response_length": 32} if algorithm == "dr_grpo" else {}) | hyper,
        ).loss
        if critic:
            loss = loss + 0.1 * plain_value_loss(vlm, critic, batch, rows)
        loss.backward()

    return gradients(vlm, backward, critic)


def step_gradients(vlm, rows, loss, machine, packed, reference=None):
    section = OptimizerSection(learning_rate=1e-9, max_grad_norm=1e9)
    fresh = Path("nowhere") if rows[0].values_T else None
    trainer = Trainer(vlm, section, temperature=TEMPERATURE, machine=machine, reference=reference, critic_from=fresh)
    assert trainer.reader.packed
    trainer.reader.packed = packed
    critic = trainer.critic and shaken(trainer.critic)
    return gradients(vlm, lambda: trainer.step(rows, loss), critic)


def assert_same(found, expected):
    """Every parameter's, to 1e-5 of its norm."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def ungated(rows):
    return [replace(row, gate_T=None) for row in rows]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("gates", ["difference", "none"])
@pytest.mark.parametrize("algorithm", OBJECTIVES)
def test_policy_gradients(vlm, copy_of, rows, algorithm, gates, packed):
    rows = rows if gates == "difference" else ungated(rows)
    rows = with_values(rows) if algorithm == "ppo" else rows
    loss = PolicyObjective(ObjectiveSection(algorithm=algorithm, **HYPER[algorithm]), ROLLOUT)
    machine = TrainerSection(tokens_per_micro_batch=150)
    found = step_gradients(copy_of(vlm), rows, loss, machine, packed)
    assert_same(found, plain_gradients(copy_of(vlm), rows, algorithm, HYPER[algorithm]))


def plain_preference_gradients(vlm, rows, beta):
    """Pair by pair: two plain rows, and DPO as it is written."""

    def backward():
        loss = 0.0
        for pair in zip(rows[::2], rows[1::2], strict=True):
            reward = []
            for row in pair:
                batch = response_batch(vlm, [row.prompt], [row.ids])
                own_T = plain_logprobs(vlm, batch, temperature=TEMPERATURE)[0]
                gate_T = torch.ones(len(row.ids)) if row.gate_T is None else torch.tensor(row.gate_T)
                reward.append((gate_T * (own_T - torch.tensor(row.old_logprobs_T))).sum())
            loss = loss - torch.sigmoid(beta * (reward[1] - reward[0])).log() / (len(rows) // 2)
        loss.backward()

    return gradients(vlm, backward)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("gates", ["difference", "none"])
@pytest.mark.parametrize("tokens", [1, 150, 10_000])
def test_preference_gradients(vlm, copy_of, rows, tokens, gates, packed):
    """Both rows of a pair meet in one micro-batch, however small; beta is large, so that margins matter."""
    rows = rows if gates == "difference" else ungated(rows)
    loss = PreferenceObjective(ObjectiveSection(algorithm="dpo", beta=2.0))
    found = step_gradients(copy_of(vlm), rows, loss, TrainerSection(tokens_per_micro_batch=tokens), packed)
    assert_same(found, plain_preference_gradients(copy_of(vlm), rows, 2.0))


@pytest.mark.parametrize("tokens", [1, 150, 10_000])
def test_supervised_gradients(vlm, copy_of, rows, tokens):
    machine = TrainerSection(tokens_per_micro_batch=tokens)
    found = step_gradients(copy_of(vlm), rows, SupervisedLoss(), machine, packed=True)
    assert_same(found, plain_gradients(copy_of(vlm), rows, "supervised", {}))


def test_gradients_with_a_kl(vlm, copy_of, rows):
    hyper = {"kl_coef": 0.5, "kl_estimator": "k3"}
    reference = copy_of(vlm)
    with torch.no_grad():
        reference.model.lm_head.weight.mul_(1.2)
    loss = PolicyObjective(ObjectiveSection(algorithm="grpo", **hyper), ROLLOUT)
    found = step_gradients(copy_of(vlm), rows, loss, TrainerSection(), packed=True, reference=reference)
    assert_same(found, plain_gradients(copy_of(vlm), rows, "grpo", hyper, reference))


def test_a_packed_step_works_on_fewer_tokens(vlm, rows):
    """Each prompt once, a pair's common beginning once, nothing after the last open gate."""
    loss = PolicyObjective(ObjectiveSection(), ROLLOUT)
    layout = LogprobReader(vlm).layout([loss.reading(row) for row in rows])
    expected = 0
    for first in range(0, len(rows), 4):
        expected += len(rows[first].prompt.ids)
        for error, repair in zip(rows[first : first + 4 : 2], rows[first + 1 : first + 4 : 2], strict=True):
            needed = [np.flatnonzero(row.gate_T)[-1] for row in (error, repair)]
            shared = next(i for i, (a, b) in enumerate(zip(error.ids, repair.ids, strict=False)) if a != b)
            expected += sum(needed) - shared
    assert layout.tokens == layout.slots == expected
    assert layout.graph_U.all()
    assert len(layout.where_N) == sum(int(np.count_nonzero(row.gate_T)) for row in rows)
