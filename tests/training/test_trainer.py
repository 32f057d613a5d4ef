"""Optimizer steps on a real model: denominators, micro-batches, gates, and what carries over."""

import math
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.strips.tiny_model import plain_logprobs
from stages.core.objectives import OBJECTIVES
from stages.errors import ArtifactError, ModelError
from stages.model.batches import encode_prompt, response_batch
from stages.model.loading import check_model_folder, load_model
from stages.model.prompts import policy_prompt
from stages.sections import ObjectiveSection, OptimizerSection, RolloutSection, TrainerSection
from stages.training.groups import with_token_advantages
from stages.training.losses import PolicyObjective, SupervisedLoss
from stages.training.trainer import MACHINE_METRICS, Trainer, TrainingRow, totals_of

ROLLOUT = RolloutSection(max_new_tokens=12, temperature=0.7)
LENGTHS = (3, 11, 5, 1, 8)
ADVANTAGES = (1.5, -0.7, 0.4, -1.2, 0.9)


@pytest.fixture(scope="module")
def rows(tiny_vlm, problems, recipe):
    """Unequal prompts and responses; old log-probs near the model's own, gates from 0 to 1, two roles."""
    rng = torch.Generator().manual_seed(1)
    prompts = [policy_prompt(tiny_vlm.processor, recipe.prompt, p) for p in problems[:5]]
    encoded = [encode_prompt(tiny_vlm, prompt) for prompt in prompts]
    ids = [torch.randint(7, len(tiny_vlm.tokenizer), (n,), generator=rng).tolist() for n in LENGTHS]
    with torch.no_grad():
        own_BT = plain_logprobs(tiny_vlm, response_batch(tiny_vlm, encoded, ids), temperature=0.7)
    noise_BT = 0.05 * torch.randn(own_BT.shape, generator=rng)
    gates_BT = torch.rand(own_BT.shape, generator=rng).round(decimals=1)
    return [
        TrainingRow(
            prompt,
            ids[i],
            ("error", "repair")[i % 2],
            ADVANTAGES[i],
            gates_BT[i, : LENGTHS[i]].tolist(),
            (own_BT + noise_BT)[i, : LENGTHS[i]].tolist(),
        )
        for i, prompt in enumerate(encoded)
    ]


def trainer(vlm, tokens=10_000, temperature=0.7, reference=None, critic_from=None, **optimizer):
    section = OptimizerSection(**{"learning_rate": 1e-3, "max_grad_norm": 1e9} | optimizer)
    machine = TrainerSection(tokens_per_micro_batch=tokens)
    return Trainer(vlm, section, temperature=temperature, machine=machine, reference=reference, critic_from=critic_from)


def gradients(vlm, rows, loss_function, tokens=10_000, totals=None, reference=None):
    """Every parameter's gradient of one step on a copy of the model, and the step's metrics."""
    fresh = Path("nowhere") if rows[0].returns_T else None
    metrics = trainer(vlm, tokens, reference=reference, critic_from=fresh).step(rows, loss_function, totals)
    found = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}
    assert any(gradient.abs().max() > 1e-4 for gradient in found.values())
    return found, metrics


def moved(vlm, copy_of):
    """A copy whose distributions are others."""
    other = copy_of(vlm)
    with torch.no_grad():
        other.model.lm_head.weight.mul_(1.5)
    return other


def assert_equal(gradients, others, atol=1e-6):
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=atol, rtol=1e-5, msg=name)


def steady(metrics):
    """Those that are the same whatever the machine does."""
    return {name: value for name, value in metrics.items() if name not in MACHINE_METRICS}


def objective(algorithm, **hyper):
    if algorithm == "supervised":
        return SupervisedLoss()
    # GSPO's own bounds would clip almost every row here.
    wide = {"clip_low": 0.2, "clip_high": 0.2} if algorithm == "gspo" else {}
    return PolicyObjective(ObjectiveSection(algorithm=algorithm, **wide, **hyper), ROLLOUT)


def with_values(rows):
    """As PPO trains on them, with made-up old values."""
    rows = [replace(row, values_T=[0.1 * (t % 4) for t in range(len(row.ids))]) for row in rows]
    return with_token_advantages(rows, ObjectiveSection(algorithm="ppo"))


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "gspo", "dr_grpo", "ppo", "supervised"])
def test_micro_batches_change_nothing(tiny_vlm, copy_of, rows, algorithm):
    rows = with_values(rows) if algorithm == "ppo" else rows
    whole, metrics = gradients(copy_of(tiny_vlm), rows, objective(algorithm))
    for tokens in (1, 200):
        parts, own_metrics = gradients(copy_of(tiny_vlm), rows, objective(algorithm), tokens=tokens)
        assert_equal(parts, whole)
        assert steady(own_metrics) == pytest.approx(steady(metrics), rel=1e-5, abs=1e-6)


def test_updated_weights_do_not_depend_on_micro_batches(tiny_vlm, copy_of, rows):
    models = [copy_of(tiny_vlm), copy_of(tiny_vlm)]
    for vlm, tokens in zip(models, (1, 10_000), strict=True):
        # Adam divides by the gradient's size: where that is 0 but for rounding, a large epsilon keeps it there.
        own = trainer(vlm, tokens)
        own.optimizer.param_groups[0]["eps"] = 1e-3
        own.step(rows, objective("grpo"))
    for (name, first), second in zip(models[0].model.named_parameters(), models[1].model.parameters(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0, msg=name)


def test_supervised_loss_is_the_mean_over_the_step_s_tokens(tiny_vlm, copy_of, rows):
    _, metrics = gradients(copy_of(tiny_vlm), rows, SupervisedLoss(), tokens=200)
    total = 0.0
    for row in rows:
        batch = response_batch(tiny_vlm, [row.prompt], [row.ids])
        with torch.no_grad():
            total -= plain_logprobs(tiny_vlm, batch, temperature=0.7).sum().item()
    assert metrics["loss"] == pytest.approx(total / sum(LENGTHS), abs=1e-5)


def expected_loss(algorithm, rows, new):
    """GRPO, DAPO and Dr.GRPO token by token, without clipping: the ratios of `rows` stay inside every bound."""
    total = 0.0
    for row, new_T in zip(rows, new, strict=True):
        terms = [
            -math.exp(logprob - old) * row.advantage * gate
            for logprob, old, gate in zip(new_T, row.old_logprobs_T, row.gate_T, strict=True)
        ]
        share = {"grpo": len(rows) * len(terms), "dapo": sum(LENGTHS), "dr_grpo": len(rows) * 12}[algorithm]
        total += sum(terms) / share
    return total


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "dr_grpo"])
def test_losses_have_their_own_denominator(tiny_vlm, copy_of, rows, algorithm):
    new = []
    for row in rows:
        batch = response_batch(tiny_vlm, [row.prompt], [row.ids])
        with torch.no_grad():
            new.append(plain_logprobs(tiny_vlm, batch, temperature=0.7)[0].tolist())
    _, metrics = gradients(copy_of(tiny_vlm), rows, objective(algorithm), tokens=200)
    assert metrics["loss"] == pytest.approx(expected_loss(algorithm, rows, new), abs=1e-5)


@pytest.mark.parametrize("algorithm", OBJECTIVES)
def test_a_gated_out_token_has_no_gradient(tiny_vlm, copy_of, rows, algorithm):
    """Gate 0 is the ungated loss with that token's log-prob held constant: its term gone, denominators kept."""
    open_rows = [replace(row, gate_T=[1.0] * len(row.ids)) for row in rows]
    closed = [1.0] * len(rows[1].ids)
    closed[4] = 0.0
    gated_rows = [*open_rows[:1], replace(rows[1], gate_T=closed), *open_rows[2:]]
    loss_function = objective(algorithm)
    if algorithm == "ppo":
        open_rows, gated_rows = with_values(open_rows), with_values(gated_rows)

    class WithoutToken:
        has_kl = False
        reading = loss_function.reading

        def __call__(self, step_rows, logprobs, reference_BT, totals):
            is_token_BT = torch.zeros_like(logprobs.read_BT)
            is_token_BT[[row.ids is rows[1].ids for row in step_rows].index(True), 4] = True
            held_BT = torch.where(is_token_BT, logprobs.logprobs_BT.detach(), logprobs.logprobs_BT)
            return loss_function(step_rows, logprobs._replace(logprobs_BT=held_BT), reference_BT, totals)

    gated, _ = gradients(copy_of(tiny_vlm), gated_rows, loss_function)
    expected, _ = gradients(copy_of(tiny_vlm), open_rows, WithoutToken())
    ungated, _ = gradients(copy_of(tiny_vlm), open_rows, loss_function)
    assert_equal(gated, expected, atol=1e-8)
    assert any((ungated[name] - gated[name]).abs().max() > 1e-4 for name in gated)


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_rows_without_advantage_may_be_left_out_of_the_work(tiny_vlm, copy_of, rows, algorithm):
    some = [replace(row, advantage=0.0) if i in (1, 3) else row for i, row in enumerate(rows)]
    needed = [row for row in some if row.advantage]
    whole, _ = gradients(copy_of(tiny_vlm), some, objective(algorithm))
    less, _ = gradients(copy_of(tiny_vlm), needed, objective(algorithm), totals=totals_of(some))
    assert_equal(less, whole)


def test_a_row_without_gate_has_gate_one(tiny_vlm, copy_of, rows):
    some = [rows[0], replace(rows[1], gate_T=None), *rows[2:]]
    ones = [rows[0], replace(rows[1], gate_T=[1.0] * len(rows[1].ids)), *rows[2:]]
    found, _ = gradients(copy_of(tiny_vlm), some, objective("grpo"))
    expected, _ = gradients(copy_of(tiny_vlm), ones, objective("grpo"))
    assert_equal(found, expected)


@pytest.mark.parametrize("change", [{"old_logprobs_T": ()}, {"gate_T": [1.0]}])
def test_a_row_with_missing_values_is_refused(tiny_vlm, copy_of, rows, change):
    with pytest.raises(ValueError, match="response tokens"):
        trainer(copy_of(tiny_vlm)).step([replace(rows[0], **change)], objective("grpo"))


def test_metrics_are_of_each_role(tiny_vlm, copy_of, rows):
    _, metrics = gradients(copy_of(tiny_vlm), rows, objective("grpo"), tokens=200)
    for role, members in (("error", rows[::2]), ("repair", rows[1::2])):
        gates = [gate for row in members for gate in row.gate_T]
        assert metrics[f"gate_density/{role}"] == pytest.approx(sum(gates) / len(gates), abs=1e-5)
        ratios = []
        for row in members:
            batch = response_batch(tiny_vlm, [row.prompt], [row.ids])
            with torch.no_grad():
                new_T = plain_logprobs(tiny_vlm, batch, temperature=0.7)[0].tolist()
            tokens = zip(new_T, row.old_logprobs_T, row.gate_T, strict=True)
            ratios += [math.exp(new - old) for new, old, gate in tokens if gate]
        assert metrics[f"ratio_mean/{role}"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-4)
        assert metrics[f"ratio_max/{role}"] == pytest.approx(max(ratios), abs=1e-4)
        assert metrics[f"clip_fraction/{role}"] == 0
        assert metrics[f"kl_old/{role}"] > 0
        assert metrics[f"entropy/{role}"] > 0


def test_kl_runs_over_gated_out_tokens_too(tiny_vlm, copy_of, rows):
    shut = [replace(row, gate_T=[0.0] * len(row.ids)) for row in rows]
    anchored, reference = objective("dapo", kl_coef=1.0), moved(tiny_vlm, copy_of)
    found, metrics = gradients(copy_of(tiny_vlm), shut, anchored, reference=reference)
    assert metrics["loss"] == pytest.approx(metrics["kl_ref"], rel=1e-4)
    assert metrics["loss"] > 1e-4
    assert found


def test_kl_is_to_the_reference_which_stays_as_it_is(tiny_vlm, copy_of, rows):
    """Its gradient pulls towards the reference: steps on the KL alone bring the model back."""
    reference = moved(tiny_vlm, copy_of)
    before = reference.model.lm_head.weight.clone()
    shut = [replace(row, advantage=0.0) for row in rows]
    own = trainer(copy_of(tiny_vlm), tokens=200, reference=reference, learning_rate=3e-4)
    distances = [own.step(shut, objective("grpo", kl_coef=1.0))["kl_ref"] for _ in range(6)]
    assert distances[-1] < 0.7 * distances[0]
    assert torch.equal(reference.model.lm_head.weight, before)
    assert all(parameter.grad is None for parameter in reference.model.parameters())


def test_kl_to_an_equal_reference_is_zero(tiny_vlm, copy_of, rows):
    plain, plain_metrics = gradients(copy_of(tiny_vlm), rows, objective("grpo"))
    anchored, metrics = gradients(
        copy_of(tiny_vlm), rows, objective("grpo", kl_coef=1.0), tokens=200, reference=copy_of(tiny_vlm)
    )
    assert metrics["kl_ref"] == pytest.approx(0, abs=1e-6)
    assert metrics["loss"] == pytest.approx(plain_metrics["loss"], abs=1e-5)
    assert_equal(anchored, plain, atol=1e-5)


def test_a_checkpoint_goes_on_where_it_stopped(tiny_vlm, copy_of, rows, tmp_path):
    loss_function = objective("grpo")
    options = {"warmup_steps": 2, "max_grad_norm": 1.0}
    through = copy_of(tiny_vlm)
    own = trainer(through, **options)
    own.step(rows, loss_function)
    own.save(tmp_path, tmp_path / "model")
    own.step(rows[::-1], loss_function)

    def second_step(resume_from):
        vlm = load_model(tmp_path / "model")
        section = own.section
        resumed = Trainer(vlm, section, temperature=0.7, resume_from=resume_from)
        metrics = resumed.step(rows[::-1], loss_function)
        return vlm, resumed, metrics

    vlm, resumed, metrics = second_step(tmp_path)
    assert (resumed.steps_done, metrics["learning_rate"]) == (2, 1e-3)
    for (name, first), second in zip(through.model.named_parameters(), vlm.model.parameters(), strict=True):
        assert torch.equal(first, second), name
    fresh, _, metrics = second_step(None)
    assert metrics["learning_rate"] == 5e-4
    assert not torch.equal(fresh.model.lm_head.weight, vlm.model.lm_head.weight)


def test_another_model_s_optimizer_state_is_refused(tiny_vlm, copy_of, rows, tmp_path):
    own = trainer(copy_of(tiny_vlm))
    own.step(rows[:1], objective("grpo"))
    own.save(tmp_path, tmp_path / "model")
    other = copy_of(tiny_vlm)
    other.model.resize_token_embeddings(len(other.tokenizer) + 1, mean_resizing=False)
    with pytest.raises(ModelError, match=r"embed_tokens.* does not fit the model"):
        Trainer(other, own.section, temperature=0.7, resume_from=tmp_path)


def test_warm_up_is_linear(tiny_vlm, copy_of, rows):
    own = trainer(copy_of(tiny_vlm), warmup_steps=4, learning_rate=0.01)
    rates = [own.step(rows[:1], objective("grpo"))["learning_rate"] for _ in range(5)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])


class Scaled(SupervisedLoss):
    """The supervised loss times a number that need not be finite, or a loss that is not while its gradient is."""

    def __init__(self, factor=1.0, offset=0.0):
        self.factor, self.offset = factor, offset

    def __call__(self, rows, logprobs, *more):
        loss, metrics = super().__call__(rows, logprobs, *more)
        return loss * self.factor + self.offset, metrics


@pytest.mark.parametrize("bad", [{"factor": math.nan}, {"factor": math.inf}, {"offset": math.inf}])
def test_a_step_that_is_not_finite_is_skipped_and_counted(bad, tiny_vlm, copy_of, rows):
    plain, tried = trainer(copy_of(tiny_vlm)), trainer(copy_of(tiny_vlm))
    skipped = [tried.step(rows, loss)["skipped"] for loss in (Scaled(), Scaled(**bad), Scaled())]
    assert skipped == [0.0, 1.0, 0.0]
    assert (tried.steps_done, tried.steps_skipped) == (3, 1)

    for _ in range(2):
        plain.step(rows, Scaled())
    for first, second in zip(plain.vlm.model.parameters(), tried.vlm.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_where_a_step_cannot_be_skipped_it_stops_the_run(tiny_vlm, copy_of, rows):
    own = trainer(copy_of(tiny_vlm))
    own.parallel.steps_apart = False  # as ZeRO-3, which steps while it clips
    with pytest.raises(ModelError, match="optimizer step 1: loss nan, gradient norm nan; lower the learning rate"):
        own.step(rows, Scaled(math.nan))


def test_gradient_norm_is_clipped(tiny_vlm, copy_of, rows):
    vlm = copy_of(tiny_vlm)
    metrics = trainer(vlm, max_grad_norm=1e-3).step(rows, objective("grpo"))
    norm = torch.stack([p.grad.norm() for p in vlm.model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    assert metrics["grad_norm"] > 1e-2


def test_a_checkpoint_that_cannot_be_written_is_told_and_written_when_it_can(tiny_vlm, tmp_path):
    own = trainer(tiny_vlm)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ArtifactError, match=r"model: cannot be written \(File too large\); raise the limit"):
            own.save(tmp_path, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    own.save(tmp_path, tmp_path / "model")
    check_model_folder(tmp_path / "model")
