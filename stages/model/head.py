"""Token log-probs from hidden states, without the logits of more than one chunk of tokens at a time.

Axes: N tokens that are read, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

TOKENS_PER_CHUNK = 128
"""Tokens whose logits exist at once on a CPU, twice over while in work."""
CHUNKS_AT_ONCE_ON_ACCELERATORS = 4
"""Every chunk reads the head's weights and writes their gradient, which there few tokens would not pay for."""


def sampled_logits(logits: Tensor, banned_ids: tuple[int, ...], temperature: float) -> Tensor:
    """Logits (..., V) of the sampled distribution: banned ids out, divided by the temperature, in float32.

    Samplers, old and new log-probs all go through here, or the ratio is off from the first step.
    """
    banned = _on_device(banned_ids, logits.device)
    return logits.float().div(temperature).index_fill_(-1, banned, float("-inf"))


@cache
def _on_device(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Copied there once: every copy waits for the device."""
    with torch.inference_mode(False):  # or no gradient could be taken where it is used
        return torch.tensor(ids, dtype=torch.long, device=device)


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    *,
    banned_ids: tuple[int, ...],
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target under `sampled_logits(hidden @ weight.T + bias)`, and that distribution's entropy.

    Both (N,), float32, in nats; the entropy has no gradient. Forward and backward each make the logits chunk by
    chunk, so memory does not grow with N x V. It computes in the type of the surrounding autocast.
    """
    device_type = hidden_NH.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else hidden_NH.dtype
    return _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, bias_V, targets_N, banned_ids, temperature, dtype
    )


@torch.no_grad()
def token_divergences(
    hidden_NH: Tensor,
    other_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    *,
    banned_ids: tuple[int, ...],
    temperature: float,
) -> Tensor:
    """KL(p || q) of the sampled distributions p of `hidden` and q of `other`, summed over the vocabulary.

    (N,), float32, in nats, without a gradient; chunk by chunk as in `token_logprobs`.
    """
    banned = _on_device(banned_ids, hidden_NH.device)
    divergences_N = torch.empty(len(hidden_NH), device=hidden_NH.device)
    for chunk in _chunks(hidden_NH):
        logp_NV, logq_NV = (
            sampled_logits(linear(states_NH[chunk], weight_VH, bias_V), banned_ids, temperature).log_softmax(-1)
            for states_NH in (hidden_NH, other_NH)
        )
        apart_NV = (logp_NV - logq_NV).index_fill_(-1, banned, 0.0)
        divergences_N[chunk] = (logp_NV.exp_() * apart_NV).sum(-1).clamp_min(0)
    return divergences_N


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        banned_ids: tuple[int, ...],
        temperature: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N)
        ctx.banned_ids, ctx.temperature, ctx.dtype = banned_ids, temperature, dtype
        hidden_NH, weight_VH, bias_V = _cast(hidden_NH, dtype), _cast(weight_VH, dtype), _cast(bias_V, dtype)
        logprobs_N = torch.empty(len(hidden_NH), device=hidden_NH.device)
        entropy_N = torch.empty_like(logprobs_N)
        for chunk in _chunks(hidden_NH):
            # No name holds on to the logits before the one that is needed: two tensors of a chunk exist at most.
            logits_NV = sampled_logits(linear(hidden_NH[chunk], weight_VH, bias_V), banned_ids, temperature)
            logits_NV = logits_NV.log_softmax(-1)
            logprobs_N[chunk] = logits_NV.gather(-1, targets_N[chunk, None]).squeeze(-1)
            entropy_N[chunk] = torch.special.entr(logits_NV.exp_(), out=logits_NV).sum(-1)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, targets_N = ctx.saved_tensors
        # In the inputs' own types: sums over chunks in bfloat16 would lose most of what they add.
        grad_hidden_NH, grad_weight_VH, grad_bias_V = (
            torch.zeros_like(value) if needed else None
            for value, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        )
        hidden_NH, weight_VH, bias_V = (_cast(value, ctx.dtype) for value in inputs)
        for chunk in _chunks(hidden_NH):
            grad_NV = sampled_logits(linear(hidden_NH[chunk], weight_VH, bias_V), ctx.banned_ids, ctx.temperature)
            grad_NV = grad_NV.softmax(-1)
            # d logprob / d logits = (one-hot of the target - softmax) / temperature
            scale_N1 = (grad_N[chunk] / ctx.temperature)[:, None]
            grad_NV.mul_(-scale_N1).scatter_add_(-1, targets_N[chunk, None], scale_N1)
            if grad_bias_V is not None:
                grad_bias_V += grad_NV.sum(0)
            grad_NV = grad_NV.to(ctx.dtype)
            if grad_hidden_NH is not None:
                grad_hidden_NH[chunk] = grad_NV @ weight_VH
            if grad_weight_VH is not None:
                _add_product(grad_weight_VH, grad_NV.T, hidden_NH[chunk])
        return grad_hidden_NH, grad_weight_VH, grad_bias_V, None, None, None, None


def _cast(value: Tensor | None, dtype: torch.dtype) -> Any:
    return None if value is None else value.to(dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, without a second tensor of its size where the types allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _chunks(hidden_NH: Tensor) -> Iterator[slice]:
    tokens = TOKENS_PER_CHUNK * (1 if hidden_NH.device.type == "cpu" else CHUNKS_AT_ONCE_ON_ACCELERATORS)
    return (slice(start, start + tokens) for start in range(0, len(hidden_NH), tokens))
