"""Policy-gradient objectives over token log-probabilities, each with a token-level gate (eq. 10).

Axes: B sequences, T response tokens, padded. `*_BT` and masks share one shape; losses are minimised.
A denominator that is global counts the whole optimisation batch, over its micro-batches and ranks, so the
losses of its parts add up to its loss: sum the gradients over micro-batches and ranks, do not average them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to ± this many nats before they are exponentiated, without a gradient past it, as in verl."""
KL_BOUND = 10.0
"""k3 is clamped to this many nats a token, without a gradient past it, as in verl."""


class PolicyLoss(NamedTuple):
    """`loss` is a scalar with a graph; `metrics` are detached scalars (see `ratio_metrics`)."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Denominators(NamedTuple):
    """Global counts, and the length budget in tokens."""

    num_sequences: int
    num_tokens: int
    max_response_length: int


class TokenTerms(NamedTuple):
    """Per-token policy loss, and where the clip cuts its gradient (CISPO: caps its weight)."""

    loss_BT: Tensor
    clipped_BT: Tensor


class Settings(NamedTuple):
    """An objective's hyper-parameters, sorted by who takes them; `clip_or_tau` is the surrogate's."""

    clip_or_tau: dict[str, Any]
    max_response_length: int | None
    kl_coef: float
    kl_estimator: KLEstimator


@dataclass(frozen=True)
class Objective:
    """What tells one algorithm from another.

    `surrogate(ratio_BT, logprobs_BT, advantages_BT, **clip_or_tau)` is the loss per token, of token ratios or
    of GSPO's sequence ratio; `aggregate` is the mean over tokens.
    """

    surrogate: Callable[..., TokenTerms]
    aggregate: Callable[[Tensor, Tensor, Denominators], Tensor]
    defaults: Mapping[str, Any]
    sequence_ratio: bool = False
    critic: bool = False


def policy_loss(
    name: str,
    *,
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    response_mask_BT: Tensor,
    gate_BT: Tensor | None = None,
    weights_BT: Tensor | None = None,
    ref_logprobs_BT: Tensor | None = None,
    num_sequences: int | None = None,
    num_tokens: int | None = None,
    **hyper: Any,
) -> PolicyLoss:
    """The named objective's loss, in float32, plus `kl_coef` times the KL to the reference.

    The gate multiplies the advantage of the policy term and nothing else: denominators, GSPO's sequence ratio
    and the KL keep all response tokens. Values outside the response mask, of any dtype, do not matter, nor do
    those of the policy term where its advantage times its gate is 0. A row without response tokens adds 0 and still
    counts as a sequence. Log-ratios and k3 are clamped: see `LOG_RATIO_BOUND` and `KL_BOUND`.

    `weights_BT` are importance weights against the engine that sampled (see `truncated_weights`), taken without
    gradient: each multiplies its token's policy term, clip and all, and nothing else. GSPO's too are a token's: its
    sequence ratio is without them.

    `advantages_B` is (B,), or (B, T) for token-level advantages (PPO's). `num_sequences` and `num_tokens` are the
    global batch's (default: this batch's). The objective decides which of them divides:
    grpo, gspo, sapo: mean over a sequence's tokens, then sum over sequences / `num_sequences`;
    dapo, cispo, ppo: sum over tokens / `num_tokens`;
    dr_grpo: sum over tokens / (`num_sequences * max_response_length`), by default T, which padding changes:
    give it when a batch is split.

    Raises ValueError on an unknown name, a hyper-parameter that the objective does not take, unequal shapes,
    or a `kl_coef` without reference log-probs.
    """
    objective, settings = _objective(name), _settings(name, hyper)
    if settings.kl_coef and ref_logprobs_BT is None:
        raise ValueError(f"kl_coef is {settings.kl_coef} without ref_logprobs_BT; pass them, or set it to 0")

    mask_BT = response_mask_BT.bool()
    new_BT = inside_mask(mask_BT, logprobs_BT)
    old_BT = inside_mask(mask_BT, old_logprobs_BT).detach()
    gated_BT = _gated(_token_advantages(mask_BT, advantages_B), _gate(mask_BT, gate_BT))
    counts_BT = gated_BT != 0
    denominators = Denominators(
        len(mask_BT) if num_sequences is None else num_sequences,
        int(mask_BT.sum()) if num_tokens is None else num_tokens,
        settings.max_response_length or mask_BT.shape[-1],
    )

    # What a product with 0 would turn into nan is cut out before it.
    ratio_BT = _ratio(new_BT, old_BT, mask_BT, counts_BT, objective.sequence_ratio)
    terms = objective.surrogate(ratio_BT, torch.where(counts_BT, new_BT, 0), gated_BT, **settings.clip_or_tau)
    weighted_BT = terms.loss_BT if weights_BT is None else terms.loss_BT * inside_mask(counts_BT, weights_BT).detach()
    loss = objective.aggregate(weighted_BT, mask_BT, denominators)
    metrics = ratio_metrics(
        name,
        logprobs_BT=logprobs_BT,
        old_logprobs_BT=old_logprobs_BT,
        advantages_B=advantages_B,
        response_mask_BT=response_mask_BT,
        gate_BT=gate_BT,
        **hyper,
    )
    if ref_logprobs_BT is not None:
        kl_BT = kl_estimate(new_BT, inside_mask(mask_BT, ref_logprobs_BT).detach(), settings.kl_estimator)
        metrics["kl_ref"] = _batch_token_mean(kl_BT.detach(), mask_BT)
        at_bound_BT = (kl_BT.detach() >= KL_BOUND) & (settings.kl_estimator == "k3")
        metrics["kl_ref_clamped"] = _batch_token_mean(at_bound_BT.float(), mask_BT)
        if settings.kl_coef:
            loss = loss + settings.kl_coef * objective.aggregate(kl_BT, mask_BT, denominators)
    return PolicyLoss(loss, metrics)


@torch.no_grad()
def ratio_metrics(
    name: str,
    *,
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_B: Tensor,
    response_mask_BT: Tensor,
    gate_BT: Tensor | None = None,
    **hyper: Any,
) -> dict[str, Tensor]:
    """How far the policy moved: scalars over the tokens of these rows whose gate is open, 0 where there are none.

    `ratio_mean` and `ratio_max` are of the token ratio, for GSPO too. `clip_fraction` is the share of tokens
    whose gradient the clip cuts, `dual_clip` included, by their ungated advantage: GSPO cuts by the sequence ratio,
    CISPO caps a weight and cuts none (the share capped), SAPO does neither (0). `clamp_fraction` is the share whose
    log-ratio (GSPO: their sequence's) lies past `LOG_RATIO_BOUND`; the ratios told here are clamped too. `kl_old` is
    the k3 estimate of KL(old || new), in nats. `gate_density` is the mean gate over all response tokens.

    Raises ValueError as `policy_loss` does.
    """
    objective, settings = _objective(name), _settings(name, hyper)
    mask_BT = response_mask_BT.bool()
    new_BT, old_BT = inside_mask(mask_BT, logprobs_BT), inside_mask(mask_BT, old_logprobs_BT)
    weights_BT = _gate(mask_BT, gate_BT)
    open_BT = weights_BT != 0
    log_ratio_BT = _log_ratio(new_BT, old_BT, mask_BT, open_BT, objective.sequence_ratio)
    token_ratio_BT = torch.exp(_clamped(torch.where(open_BT, new_BT - old_BT, 0)))
    advantages_BT = _token_advantages(mask_BT, advantages_B)
    terms = objective.surrogate(torch.exp(_clamped(log_ratio_BT)), new_BT, advantages_BT, **settings.clip_or_tau)
    return {
        "ratio_mean": _batch_token_mean(token_ratio_BT, open_BT),
        "ratio_max": torch.where(open_BT, token_ratio_BT, 0).max(),
        "clip_fraction": _batch_token_mean(terms.clipped_BT.float(), open_BT),
        "clamp_fraction": _batch_token_mean((log_ratio_BT.abs() > LOG_RATIO_BOUND).float(), open_BT),
        "kl_old": _batch_token_mean(kl_estimate(old_BT, new_BT, "k3"), open_BT),
        "gate_density": _batch_token_mean(weights_BT, mask_BT),
    }


def reads_every_token(name: str, *, kl_coef: float) -> bool:
    """Whether the loss depends on log-probs at tokens whose gate is 0: through the sequence's ratio, or the KL.

    Raises ValueError on an unknown name.
    """
    return _objective(name).sequence_ratio or kl_coef > 0


def has_critic(name: str) -> bool:
    """Whether a critic makes its advantages, token by token, and not the rewards of the group."""
    return name in OBJECTIVES and OBJECTIVES[name].critic


def objective_hyper(name: str) -> dict[str, Any]:
    """The hyper-parameters that the objective takes, with their defaults.

    `max_response_length` None stands for the padded length T. Raises ValueError on an unknown name.
    """
    return {**_objective(name).defaults, "kl_coef": 0.0, "kl_estimator": "k3"}


def kl_estimate(sampled_BT: Tensor, other_BT: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(sampled || other), in nats, at tokens drawn from the first; shape (B, T).

    With d = sampled - other: k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1 (Schulman 2020), d clamped to
    ± `LOG_RATIO_BOUND` there and k3 to `KL_BOUND`. Raises ValueError on an unknown estimator.
    """
    difference_BT = sampled_BT - other_BT
    match estimator:
        case "k1":
            return difference_BT
        case "k2":
            return difference_BT.square() / 2
        case "k3":
            difference_BT = _clamped(difference_BT)
            return (torch.expm1(-difference_BT) + difference_BT).clamp(max=KL_BOUND)
    raise ValueError(f"kl_estimator is {estimator!r}; use k1, k2 or k3")


def _ratio(new_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, counts_BT: Tensor, sequence_ratio: bool) -> Tensor:
    """`pi / pi_old` of each token, or GSPO-token's `sg[s_i] pi_t / sg[pi_t]` (arXiv 2507.18071).

    The latter has the value of the sequence's ratio, over all its response tokens, and each token's own
    gradient. Tokens that do not count have no gradient.
    """
    return torch.exp(_clamped(_log_ratio(new_BT, old_BT, mask_BT, counts_BT, sequence_ratio)))


def _log_ratio(new_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, counts_BT: Tensor, sequence_ratio: bool) -> Tensor:
    """Its logarithm, not clamped; 0 at tokens that do not count, unless it is the sequence's."""
    counted_BT = torch.where(counts_BT, new_BT, 0)
    if not sequence_ratio:
        return counted_BT - torch.where(counts_BT, old_BT, 0)
    log_s_B1 = (new_BT.detach() - old_BT).sum(-1, keepdim=True) / _lengths(mask_BT)[:, None]
    return log_s_B1 + (counted_BT - counted_BT.detach())


def _clamped(log_ratio_BT: Tensor) -> Tensor:
    return log_ratio_BT.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def _ppo_clip(
    ratio_BT: Tensor,
    _logprobs_BT: Tensor,
    advantages_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> TokenTerms:
    """`-min(rA, clip(r, 1 - clip_low, 1 + clip_high) A)` (arXiv 1707.06347; DAPO parted the two bounds).

    With `dual_clip` c, where A < 0, never more than `-cA` (arXiv 1912.09729, eq. 5).
    """
    free_BT = ratio_BT * advantages_BT
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_BT
    gain_BT, cut_BT = torch.minimum(free_BT, clipped_BT), clipped_BT < free_BT
    if dual_clip is not None:
        far_BT = (advantages_BT < 0) & (ratio_BT > dual_clip)
        gain_BT, cut_BT = torch.where(far_BT, dual_clip * advantages_BT, gain_BT), cut_BT | far_BT
    return TokenTerms(-gain_BT, cut_BT)


def _sapo(
    ratio_BT: Tensor, _logprobs_BT: Tensor, advantages_BT: Tensor, *, tau_positive: float, tau_negative: float
) -> TokenTerms:
    """`-A sigmoid(tau (r - 1)) 4 / tau`, tau by the sign of A: a soft gate where others clip."""
    tau_BT = torch.where(advantages_BT > 0, tau_positive, tau_negative)
    loss_BT = -advantages_BT * torch.sigmoid(tau_BT * (ratio_BT - 1)) * 4 / tau_BT
    return TokenTerms(loss_BT, torch.zeros_like(ratio_BT, dtype=torch.bool))


def _cispo(ratio_BT: Tensor, logprobs_BT: Tensor, advantages_BT: Tensor, *, clip_high: float) -> TokenTerms:
    """`-sg[min(r, clip_high)] A logprob`; `clip_high` bounds r itself, not 1 + epsilon (arXiv 2506.13585)."""
    weight_BT = ratio_BT.detach().clamp(max=clip_high)
    return TokenTerms(-weight_BT * advantages_BT * logprobs_BT, ratio_BT > clip_high)


def _sequence_mean(values_BT: Tensor, mask_BT: Tensor, denominators: Denominators) -> Tensor:
    """Mean over a sequence's response tokens, then over the global number of sequences."""
    means_B = torch.where(mask_BT, values_BT, 0).sum(-1) / _lengths(mask_BT)
    return means_B.sum() / denominators.num_sequences


def _token_mean(values_BT: Tensor, mask_BT: Tensor, denominators: Denominators) -> Tensor:
    """Sum over response tokens / the global number of response tokens."""
    return torch.where(mask_BT, values_BT, 0).sum() / max(denominators.num_tokens, 1)


def _budget_mean(values_BT: Tensor, mask_BT: Tensor, denominators: Denominators) -> Tensor:
    """Sum over response tokens / (global number of sequences * the length budget), whatever the lengths."""
    budget = denominators.num_sequences * denominators.max_response_length
    return torch.where(mask_BT, values_BT, 0).sum() / budget


def _batch_token_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over these rows' response tokens."""
    return torch.where(mask_BT, values_BT, 0).sum() / mask_BT.sum().clamp(min=1)


def _lengths(mask_BT: Tensor) -> Tensor:
    # An empty response has only zeros to average.
    return mask_BT.sum(-1).clamp(min=1)


def inside_mask(mask_BT: Tensor, values_BT: Tensor) -> Tensor:
    """Values (B, T) in float32, and 0 outside the mask, where inf and nan would reach the gradient.

    Raises ValueError on unequal shapes.
    """
    if values_BT.shape != mask_BT.shape:
        raise ValueError(
            f"values of shape {tuple(values_BT.shape)} against a response mask of {tuple(mask_BT.shape)}; "
            "pass (B, T) tensors of one shape, and advantages of (B,) or (B, T)"
        )
    return torch.where(mask_BT, values_BT.float(), 0)


def _token_advantages(mask_BT: Tensor, advantages_B: Tensor) -> Tensor:
    if advantages_B.ndim == 1:
        advantages_B = advantages_B[:, None].expand(-1, mask_BT.shape[-1])
    return inside_mask(mask_BT, advantages_B)


def _gated(advantages_BT: Tensor, gate_BT: Tensor) -> Tensor:
    """Their product; 0 behind a closed gate, whatever the advantage."""
    return torch.where(gate_BT != 0, advantages_BT, 0) * gate_BT


def _gate(mask_BT: Tensor, gate_BT: Tensor | None) -> Tensor:
    return mask_BT.float() if gate_BT is None else inside_mask(mask_BT, gate_BT)


def _objective(name: str) -> Objective:
    if name not in OBJECTIVES:
        raise ValueError(f"objective {name!r} is unknown; use one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def _settings(name: str, hyper: Mapping[str, Any]) -> Settings:
    defaults = objective_hyper(name)
    if unknown := hyper.keys() - defaults.keys():
        raise ValueError(f"{name} does not take {', '.join(sorted(unknown))}; it takes {', '.join(defaults)}")
    complete = {**defaults, **hyper}
    length_budget = complete.pop("max_response_length", None)
    kl_coef, kl_estimator = complete.pop("kl_coef"), complete.pop("kl_estimator")
    return Settings(complete, length_budget, kl_coef, kl_estimator)


OBJECTIVES: Mapping[str, Objective] = {
    # arXiv 2402.03300
    "grpo": Objective(_ppo_clip, _sequence_mean, {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}),
    # arXiv 2503.20783
    "dr_grpo": Objective(
        _ppo_clip,
        _budget_mean,
        {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "max_response_length": None},
    ),
    # arXiv 2503.14476
    "dapo": Objective(_ppo_clip, _token_mean, {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": None}),
    # arXiv 2507.18071
    "gspo": Objective(
        _ppo_clip, _sequence_mean, {"clip_low": 3e-4, "clip_high": 4e-4, "dual_clip": None}, sequence_ratio=True
    ),
    # arXiv 2511.20347
    "sapo": Objective(_sapo, _sequence_mean, {"tau_positive": 1.0, "tau_negative": 1.05}),
    # arXiv 2506.13585
    "cispo": Objective(_cispo, _token_mean, {"clip_high": 5.0}),
    # arXiv 1707.06347
    "ppo": Objective(_ppo_clip, _token_mean, {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}, critic=True),
}
