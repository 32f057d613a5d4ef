"""Objectives against values worked by hand and a plain-Python loop that shares no code with them.

Axes: B sequences, T response tokens, padded.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.objectives import kl_estimate, objective_hyper, policy_loss, ratio_metrics

ALGORITHMS = ["grpo", "dr_grpo", "dapo", "gspo", "sapo", "cispo", "ppo"]
LENGTH_BUDGET = 10

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


@dataclass(frozen=True)
class Batch:
    new: Tensor
    old: Tensor
    ref: Tensor
    advantages: Tensor
    mask: Tensor
    gate: Tensor | None = None
    weights: Tensor | None = None

    def rows(self, rows: slice, tokens: int) -> "Batch":
        cut = {k: v[rows, :tokens] if v.ndim == 2 else v[rows] for k, v in vars(self).items() if v is not None}
        return Batch(**cut)


def inputs(name: str, batch: Batch, **options: Any) -> dict[str, Any]:
    if name == "dr_grpo":
        options.setdefault("max_response_length", LENGTH_BUDGET)
    return {
        "old_logprobs_BT": batch.old,
        "advantages_B": batch.advantages,
        "response_mask_BT": batch.mask,
        "gate_BT": batch.gate,
        **({} if batch.weights is None else {"weights_BT": batch.weights}),
        **options,
    }


def loss_and_gradient(name: str, batch: Batch, *, kl: float = 0.0, **options: Any) -> tuple[Tensor, Tensor]:
    new = batch.new.clone().requires_grad_()
    if kl:
        options |= {"kl_coef": kl, "ref_logprobs_BT": batch.ref}
    loss = policy_loss(name, logprobs_BT=new, **inputs(name, batch, **options)).loss
    (gradient,) = torch.autograd.grad(loss, new)
    return loss.detach(), gradient


def random_batch(lengths: list[int], seed: int = 0, width: int | None = None) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width or max(lengths))
    old = -3 * torch.rand(shape, generator=rng) - 0.1
    return Batch(
        new=old + 0.5 * torch.randn(shape, generator=rng),
        old=old,
        ref=old + 0.3 * torch.randn(shape, generator=rng),
        advantages=torch.randn(shape[0], generator=rng),
        mask=torch.arange(shape[1]) < torch.tensor(lengths)[:, None],
        gate=(torch.rand(shape, generator=rng) < 0.6) * torch.rand(shape, generator=rng),
    )


def token_by_loop(name: str, new: float, old: float, s: float, advantage: float) -> tuple[float, float]:
    """Loss of one token and its slope in the token's log-prob."""
    r = s if name == "gspo" else math.exp(new - old)
    low, high = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}.get(name, (0.2, 0.2))
    if name == "cispo":
        return -min(r, 5.0) * advantage * new, -min(r, 5.0) * advantage
    if name == "sapo":
        tau = 1.0 if advantage > 0 else 1.05
        sigmoid = 1 / (1 + math.exp(-tau * (r - 1)))
        return -advantage * sigmoid * 4 / tau, -advantage * 4 * sigmoid * (1 - sigmoid) * r
    if advantage > 0 and r > 1 + high:
        return -(1 + high) * advantage, 0.0
    if advantage < 0 and r < 1 - low:
        return -(1 - low) * advantage, 0.0
    return -r * advantage, -r * advantage


def by_loop(name: str, batch: Batch, kl: float = 0.0) -> tuple[float, list[list[float]]]:
    """Loss and gradient, token by token; the KL is k3, e^(-k1) + k1 - 1 with slope 1 - e^(-k1)."""
    lengths = [int(row.sum()) for row in batch.mask]
    count = len(lengths)
    loss, gradient = 0.0, [[0.0] * batch.new.shape[1] for _ in lengths]
    for b, length in enumerate(lengths):
        new, old, ref = (values[b, :length].tolist() for values in (batch.new, batch.old, batch.ref))
        s = math.exp(sum(n - o for n, o in zip(new, old, strict=True)) / max(length, 1))
        for t in range(length):
            gate = 1.0 if batch.gate is None else float(batch.gate[b, t])
            weight = 1.0 if batch.weights is None else float(batch.weights[b, t])
            value, slope = token_by_loop(name, new[t], old[t], s, float(batch.advantages[b]) * gate)
            value, slope = weight * value, weight * slope
            k1 = new[t] - ref[t]
            value += kl * (math.exp(-k1) + k1 - 1)
            slope += kl * (1 - math.exp(-k1))
            denominator = dict.fromkeys(("dapo", "cispo", "ppo"), sum(lengths)) | {"dr_grpo": count * LENGTH_BUDGET}
            loss += value / denominator.get(name, count * length)
            gradient[b][t] = slope / denominator.get(name, count * length)
    return loss, gradient


def two_rows(gate: Tensor | None = None) -> Batch:
    """Ratios 6, 1/2, 1.1 at advantage 2, and 1/2 at advantage -1; old log-probs -1, -2, -3 and -4."""
    ratios = torch.tensor([[6.0, 0.5, 1.1], [0.5, 1.0, 1.0]])
    old = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    return Batch(old + ratios.log(), old, old, torch.tensor([2.0, -1.0]), mask, gate)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Unequal lengths, 3 and 1. Clipped terms: 6 * 2 falls to (1 + high) * 2, and 1/2 * -1 to (1 - low) * -1.
GOLDEN = {
    "grpo": -((2.4 + 1.0 + 2.2) / 3 - 0.8 / 1) / 2,
    "dr_grpo": -(2.4 + 1.0 + 2.2 - 0.8) / (2 * LENGTH_BUDGET),
    "dapo": -(2.56 + 1.0 + 2.2 - 0.8) / 4,
    # s is the cube root of 3.3, then 1/2: both sequences are clipped.
    "gspo": -(2 * 1.0004 - 0.9997) / 2,
    "sapo": -(8 * (sigmoid(5) + sigmoid(-0.5) + sigmoid(0.1)) / 3 - 4 / 1.05 * sigmoid(-0.525)) / 2,
    "cispo": -(
        5 * 2 * (math.log(6) - 1)
        + 0.5 * 2 * (math.log(0.5) - 2)
        + 1.1 * 2 * (math.log(1.1) - 3)
        - 0.5 * (math.log(0.5) - 4)
    )
    / 4,
    "ppo": -(2.4 + 1.0 + 2.2 - 0.8) / 4,
}


@every_algorithm
def test_loss_worked_by_hand(name):
    loss, _ = loss_and_gradient(name, two_rows())

    assert loss.item() == pytest.approx(GOLDEN[name], rel=1e-5)


@every_algorithm
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [[5, 2], [1, 4, 0, 6]])
def test_loss_and_gradient_equal_a_plain_loop(name, gated, kl, lengths):
    for seed in range(5):
        batch = random_batch(lengths, seed)
        batch = batch if gated else replace(batch, gate=None)
        loss, gradient = loss_and_gradient(name, batch, kl=kl)
        expected_loss, expected_gradient = by_loop(name, batch, kl)

        assert loss.item() == pytest.approx(expected_loss, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(gradient, torch.tensor(expected_gradient), rtol=1e-4, atol=1e-6)


def with_weights(batch: Batch, seed: int = 0) -> Batch:
    """From 0 to 2."""
    return replace(batch, weights=2 * torch.rand(batch.new.shape, generator=torch.Generator().manual_seed(seed)))


@every_algorithm
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_importance_weights_multiply_each_token_s_term_alone(name, kl):
    """The loop's denominators, ratios and KL are without them."""
    for seed in range(5):
        batch = with_weights(random_batch([1, 4, 0, 6], seed), seed)
        loss, gradient = loss_and_gradient(name, batch, kl=kl)
        expected_loss, expected_gradient = by_loop(name, batch, kl)

        assert loss.item() == pytest.approx(expected_loss, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(gradient, torch.tensor(expected_gradient), rtol=1e-4, atol=1e-6)


@every_algorithm
def test_weights_of_one_are_no_weights_and_weights_have_no_gradient(name):
    batch = random_batch([5, 2, 7])
    weights = torch.ones_like(batch.new).requires_grad_()
    weighted = loss_and_gradient(name, replace(batch, weights=weights), kl=0.1)
    plain = loss_and_gradient(name, batch, kl=0.1)
    assert torch.equal(weighted[0], plain[0])
    assert torch.equal(weighted[1], plain[1])
    loss = policy_loss(name, logprobs_BT=batch.new, **inputs(name, replace(batch, weights=weights))).loss
    assert not loss.requires_grad


@every_algorithm
def test_gate_of_ones_is_no_gate(name):
    batch = random_batch([5, 2, 7])
    gated = loss_and_gradient(name, replace(batch, gate=torch.ones_like(batch.new)), kl=0.1)
    ungated = loss_and_gradient(name, replace(batch, gate=None), kl=0.1)

    assert torch.equal(gated[0], ungated[0])
    assert torch.equal(gated[1], ungated[1])


@every_algorithm
def test_gated_out_token_gets_exactly_no_gradient_and_the_others_keep_theirs(name):
    batch = random_batch([5, 2, 7], seed=1)
    batch = replace(batch, gate=(batch.gate > 0).float())
    _, gated = loss_and_gradient(name, batch)
    _, ungated = loss_and_gradient(name, replace(batch, gate=None))

    assert ungated[batch.mask & (batch.gate == 0)].any()
    assert torch.equal(gated, torch.where(batch.gate == 0, 0.0, ungated))


@every_algorithm
def test_kl_runs_over_gated_out_tokens(name):
    batch = random_batch([5, 2])
    gated_out = replace(batch, gate=torch.zeros_like(batch.new))
    loss, gradient = loss_and_gradient(name, gated_out, kl=0.5)
    expected_loss, expected_gradient = by_loop(name, gated_out, kl=0.5)

    assert gradient[batch.mask].all()
    assert loss.item() == pytest.approx(expected_loss, rel=1e-4)
    torch.testing.assert_close(gradient, torch.tensor(expected_gradient))


@every_algorithm
def test_micro_batches_add_up_to_the_batch(name):
    batch = with_weights(random_batch([3, 6, 1, 8, 0], seed=2))
    loss, gradient = loss_and_gradient(name, batch, kl=0.2)
    whole = {"num_sequences": 5, "num_tokens": int(batch.mask.sum())}
    parts = [(slice(0, 1), 3), (slice(1, 3), 6), (slice(3, 5), 8)]
    summed, joined = 0.0, torch.zeros_like(gradient)
    for rows, tokens in parts:
        part_loss, part_gradient = loss_and_gradient(name, batch.rows(rows, tokens), kl=0.2, **whole)
        summed += part_loss
        joined[rows, :tokens] = part_gradient

    torch.testing.assert_close(summed, loss)
    torch.testing.assert_close(joined, gradient)


@every_algorithm
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_garbage_outside_the_response_does_not_leak(name, garbage):
    clean = with_weights(random_batch([5, 2, 0], width=6))
    clean = replace(clean, advantages=clean.advantages[:, None].expand(3, 6))
    fields = ("new", "old", "ref", "advantages", "gate", "weights")
    dirty = replace(clean, **{f: getattr(clean, f).masked_fill(~clean.mask, garbage) for f in fields})
    loss, gradient = loss_and_gradient(name, dirty, kl=0.1)
    expected_loss, expected_gradient = loss_and_gradient(name, clean, kl=0.1)
    metrics = policy_loss(name, logprobs_BT=dirty.new, **inputs(name, dirty, ref_logprobs_BT=dirty.ref)).metrics

    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)
    assert not gradient[~clean.mask].any()
    assert all(value.isfinite() for value in metrics.values())


@every_algorithm
def test_token_advantages_equal_their_broadcast(name):
    batch = random_batch([4, 2])
    per_token = replace(batch, advantages=batch.advantages[:, None].expand_as(batch.new))

    assert torch.equal(loss_and_gradient(name, batch)[1], loss_and_gradient(name, per_token)[1])


@every_algorithm
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_mask_dtype_does_not_matter(name, dtype):
    batch = random_batch([4, 2])
    loss, gradient = loss_and_gradient(name, replace(batch, mask=batch.mask.to(dtype)), kl=0.1)
    expected_loss, expected_gradient = loss_and_gradient(name, batch, kl=0.1)

    assert torch.equal(loss, expected_loss)
    assert torch.equal(gradient, expected_gradient)


@every_algorithm
def test_low_precision_inputs_are_computed_in_float32(name):
    batch = random_batch([5, 2])
    low = {f: getattr(batch, f).bfloat16() for f in ("new", "old", "ref", "advantages", "gate")}
    loss, _ = loss_and_gradient(name, replace(batch, **low), kl=0.1)
    rounded, _ = loss_and_gradient(name, replace(batch, **{f: v.float() for f, v in low.items()}), kl=0.1)

    assert loss.dtype == torch.float32
    assert torch.equal(loss, rounded)


@every_algorithm
def test_old_logprobs_are_constants_on_the_first_step(name):
    batch = replace(random_batch([4, 2]), gate=None)
    new = batch.new.clone().requires_grad_()
    policy_loss(name, logprobs_BT=new, **inputs(name, replace(batch, old=new))).loss.backward()
    _, expected = by_loop(name, replace(batch, old=batch.new))

    torch.testing.assert_close(new.grad, torch.tensor(expected))


@every_algorithm
def test_batch_without_response_tokens_is_zero(name):
    batch = random_batch([0, 0], width=3)
    loss, gradient = loss_and_gradient(name, batch, kl=0.1)
    metrics = policy_loss(name, logprobs_BT=batch.new, **inputs(name, batch)).metrics

    assert loss == 0
    assert not gradient.any()
    assert all(value == 0 for value in metrics.values())


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.3, 2.0, 0.0),
        (0.7, 2.0, -1.4),
        (1.3, -2.0, 2.6),
        (0.7, -2.0, 0.0),
        (1.25, 2.0, -2.5),
        (1.1, 2.0, -2.2),
    ],
)
def test_dapo_cuts_rises_of_good_tokens_and_falls_of_bad_ones(ratio, advantage, slope):
    old = torch.tensor([[-1.0]])
    batch = Batch(old + math.log(ratio), old, old, torch.tensor([advantage]), torch.ones(1, 1))
    _, gradient = loss_and_gradient("dapo", batch)

    assert gradient.item() == pytest.approx(slope, rel=1e-5)


@every_algorithm
def test_clip_and_tau_settings_reach_the_objective(name):
    settings = objective_hyper(name)
    batch = two_rows()
    default, _ = loss_and_gradient(name, batch)
    for key in settings.keys() - {"kl_coef", "kl_estimator", "max_response_length"}:
        changed, _ = loss_and_gradient(name, batch, **{key: 0.45})
        assert not torch.isclose(default, changed), key


def test_dr_grpo_length_budget_defaults_to_the_padded_length():
    padded, _ = loss_and_gradient("dr_grpo", two_rows(), max_response_length=None)

    assert padded.item() == pytest.approx(GOLDEN["dr_grpo"] * LENGTH_BUDGET / 3)


def test_objective_hyper_lists_the_defaults_and_hands_out_copies():
    kl = {"kl_coef": 0.0, "kl_estimator": "k3"}
    expected = {
        "grpo": {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None},
        "dr_grpo": {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "max_response_length": None},
        "dapo": {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": None},
        "gspo": {"clip_low": 3e-4, "clip_high": 4e-4, "dual_clip": None},
        "sapo": {"tau_positive": 1.0, "tau_negative": 1.05},
        "cispo": {"clip_high": 5.0},
        "ppo": {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None},
    }
    objective_hyper("cispo")["clip_high"] = 1.0

    assert {name: objective_hyper(name) for name in ALGORITHMS} == {n: v | kl for n, v in expected.items()}


# k1 = ln 2, so e^(-k1) = 1/2.
@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", math.log(2) - 0.5)],
)
def test_kl_estimators_worked_by_hand(estimator, expected):
    batch = replace(two_rows(), new=two_rows().old + math.log(2))

    assert kl_estimate(batch.new, batch.old, estimator) == pytest.approx(expected)
    result = policy_loss(
        "dapo",
        logprobs_BT=batch.new,
        **inputs("dapo", replace(batch, advantages=torch.zeros(2))),
        ref_logprobs_BT=batch.old,
        kl_coef=0.5,
        kl_estimator=estimator,
    )
    assert result.loss.item() == pytest.approx(0.5 * expected)
    assert result.metrics["kl_ref"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "clip_fraction"),
    [("grpo", 2 / 3), ("dr_grpo", 2 / 3), ("dapo", 2 / 3), ("gspo", 3 / 3), ("sapo", 0.0), ("cispo", 1 / 3)],
)
def test_metrics_worked_by_hand(name, clip_fraction):
    batch = two_rows(gate=torch.tensor([[0.5, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    new = batch.new.clone().requires_grad_()
    metrics = policy_loss(name, logprobs_BT=new, **inputs(name, batch)).metrics
    # Of the tokens whose gate is open; 1.1 stands behind a gate of 0.
    ratios = [6.0, 0.5, 0.5]

    assert {key: value.item() for key, value in metrics.items()} == pytest.approx(
        {
            "ratio_mean": sum(ratios) / 3,
            "ratio_max": 6.0,
            "clip_fraction": clip_fraction,
            "clamp_fraction": 0.0,
            "kl_old": sum(r - 1 - math.log(r) for r in ratios) / 3,
            "gate_density": 2.5 / 4,
        },
        rel=1e-5,
    )
    assert not any(value.requires_grad for value in metrics.values())


def token_far_out(new: float, old: float, gate: float = 1.0, advantage: float = 0.5) -> Batch:
    """Two tokens: the given one, and one at ratio 1."""
    batch = Batch(
        torch.tensor([[new, -0.7]]),
        torch.tensor([[old, -0.7]]),
        torch.tensor([[-0.1, -0.7]]),
        torch.tensor([advantage]),
        torch.ones(1, 2),
        torch.tensor([[gate, 1.0]]),
    )
    return replace(batch, weights=torch.tensor([[math.inf, 1.0]])) if gate == 0 else batch


FAR = [(-0.1, -95.0), (-95.0, -0.1), (-0.1, -1e4), (-1e4, -0.1), (-0.1, -math.inf), (-math.inf, -0.1)]


@every_algorithm
@pytest.mark.parametrize("advantage", [0.5, -0.5])
@pytest.mark.parametrize(("new", "old"), [*FAR, (math.nan, -0.1), (-0.1, math.nan), (-math.inf, -math.inf)])
def test_whatever_stands_behind_a_closed_gate_adds_nothing(name, new, old, advantage):
    """But for GSPO, whose sequence's ratio reads every token: it is of numbers here."""
    if name == "gspo" and math.isnan(new - old):
        new, old = FAR[0]
    batch = token_far_out(new, old, gate=0.0, advantage=advantage)
    loss, gradient = loss_and_gradient(name, batch)
    result = policy_loss(name, logprobs_BT=batch.new, **inputs(name, batch))

    if name == "gspo":
        bounded = max(-20.0, min(20.0, (new - old) / 2))
        s, low, high = math.exp(bounded), 1 - 3e-4, 1 + 4e-4
        term = -min(s * advantage, min(max(s, low), high) * advantage)
    else:  # the other token, at ratio 1
        term = -advantage * {"sapo": 2 / (1.0 if advantage > 0 else 1.05), "cispo": -0.7}.get(name, 1.0)
    assert loss.item() == pytest.approx(term / (LENGTH_BUDGET if name == "dr_grpo" else 2), rel=1e-5)
    assert gradient[0, 0] == 0
    assert gradient.isfinite().all()
    assert all(value.isfinite() for value in result.metrics.values())


@every_algorithm
@pytest.mark.parametrize("advantage", [0.5, 0.0, -0.5])
@pytest.mark.parametrize(("new", "old"), FAR[:4])
def test_log_ratios_far_out_are_clamped_and_counted(name, new, old, advantage):
    batch = token_far_out(new, old, advantage=advantage)
    loss, gradient = loss_and_gradient(name, batch, kl=0.1)
    bounded = replace(batch, new=torch.tensor([[old + math.copysign(20.0, new - old), -0.7]]))
    metrics = policy_loss(name, logprobs_BT=batch.new, **inputs(name, batch, ref_logprobs_BT=batch.ref)).metrics

    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert all(value.isfinite() for value in metrics.values())
    if name != "gspo":
        assert metrics["ratio_max"].item() == pytest.approx(math.exp(20) if new > old else 1.0, rel=1e-4)
        assert metrics["clamp_fraction"] == 0.5
        term, no_gradient = loss_and_gradient(name, batch)
        assert no_gradient[0, 0] == 0 or name == "cispo"
        if name != "cispo":  # its term is of the log-prob itself
            torch.testing.assert_close(term, loss_and_gradient(name, bounded)[0], rtol=1e-4, atol=1e-6)
    else:
        assert metrics["clamp_fraction"] == 1.0


def test_a_ratio_inside_the_bound_is_not_clamped():
    batch = token_far_out(-0.1, -19.0, advantage=-0.5)
    loss, gradient = loss_and_gradient("grpo", batch)

    assert loss.item() == pytest.approx((0.5 * math.exp(18.9) + 0.5) / 2, rel=1e-5)
    assert gradient[0, 0].item() == pytest.approx(0.5 * math.exp(18.9) / 2, rel=1e-5)


def test_k3_is_clamped_to_ten_nats_and_counted():
    """At a difference of -2 it is e^2 - 3; at -3, e^3 - 4 is more than 10."""
    policy = torch.tensor([[-3.0, -4.0, -200.0]], requires_grad=True)
    reference = torch.tensor([[-1.0, -1.0, -0.1]])
    kl = kl_estimate(policy, reference, "k3")
    (gradient,) = torch.autograd.grad(kl.sum(), policy)

    torch.testing.assert_close(kl, torch.tensor([[math.exp(2) - 3, 10.0, 10.0]]))
    torch.testing.assert_close(gradient, torch.tensor([[1 - math.exp(2), 0.0, 0.0]]))
    batch = Batch(policy.detach(), policy.detach(), reference, torch.tensor([1.0]), torch.ones(1, 3))
    options = inputs("grpo", batch, ref_logprobs_BT=reference)
    assert policy_loss("grpo", logprobs_BT=batch.new, **options).metrics["kl_ref_clamped"].item() == pytest.approx(
        2 / 3
    )
    squared = policy_loss("grpo", logprobs_BT=batch.new, **options, kl_estimator="k2").metrics
    assert squared["kl_ref_clamped"] == 0


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "ppo"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "cut"),
    [(5.0, -2.0, 6.0, True), (2.9, -2.0, 5.8, False), (0.1, -2.0, None, True), (5.0, 2.0, None, True)],
)
def test_dual_clip_bounds_the_loss_of_bad_tokens_alone(name, ratio, advantage, expected, cut):
    """At c = 3 a bad token loses 3 |A| at most, and has no gradient past it; the rest is as without."""
    old = torch.tensor([[-2.0]])
    batch = Batch(old + math.log(ratio), old, old, torch.tensor([advantage]), torch.ones(1, 1))
    loss, gradient = loss_and_gradient(name, batch, dual_clip=3.0)
    scale = LENGTH_BUDGET if name == "dr_grpo" else 1
    metrics = policy_loss(name, logprobs_BT=batch.new, **inputs(name, batch, dual_clip=3.0)).metrics

    if expected is None:
        assert loss == loss_and_gradient(name, batch)[0]
    else:
        assert loss.item() * scale == pytest.approx(expected, rel=1e-5)
    assert gradient.item() == (0.0 if cut else pytest.approx(-ratio * advantage / scale, rel=1e-5))
    assert metrics["clip_fraction"] == float(cut)


def test_ratio_metrics_describe_the_rows_they_are_given():
    second = two_rows().rows(slice(1, 2), 3)
    metrics = ratio_metrics("grpo", logprobs_BT=second.new, **inputs("grpo", second))

    assert metrics["ratio_mean"].item() == pytest.approx(0.5)
    assert metrics["clip_fraction"] == 1
    assert metrics["gate_density"] == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reinforce", {}, "objective 'reinforce' is unknown; use one of grpo, "),
        (
            "grpo",
            {"tau_positive": 1.0},
            "grpo does not take tau_positive; it takes clip_low, clip_high, dual_clip, kl_coef",
        ),
        ("cispo", {"clip_low": 0.2}, "cispo does not take clip_low"),
        ("sapo", {"clip_high": 0.2}, "sapo does not take clip_high"),
        ("dapo", {"max_response_length": 5}, "dapo does not take max_response_length"),
        ("grpo", {"kl_coef": 0.1}, "kl_coef is 0.1 without ref_logprobs_BT"),
        ("grpo", {"ref_logprobs_BT": torch.zeros(2, 3), "kl_estimator": "k4"}, "kl_estimator is 'k4'"),
        ("grpo", {"gate_BT": torch.ones(1, 3)}, r"shape \(1, 3\) against a response mask of \(2, 3\)"),
        ("grpo", {"advantages_B": torch.ones(1)}, r"shape \(1, 3\) against a response mask of \(2, 3\)"),
    ],
)
def test_what_an_objective_does_not_take_is_refused(name, options, message):
    batch = two_rows()
    with pytest.raises(ValueError, match=message):
        policy_loss(name, logprobs_BT=batch.new, **{**inputs("grpo", batch), **options})
