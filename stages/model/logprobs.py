"""Log-probs of response tokens under a model, of the very distribution that is sampled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stages.model.batches import ResponseBatch
from stages.model.loading import VisionLanguageModel


class ResponseLogprobs(NamedTuple):
    """Both (B, T), float32, 0 where the response mask is False."""

    logprobs_BT: Tensor
    entropy_BT: Tensor
    """Entropy in nats of the distribution at each token, without gradient."""


def sampled_logits(logits: Tensor, banned_ids: tuple[int, ...], temperature: float) -> Tensor:
    """Logits (..., V) of the sampled distribution: banned ids out, divided by the temperature, in float32.

    Samplers, old and new log-probs all go through here, or the ratio is off from the first step.
    """
    banned = torch.tensor(banned_ids, dtype=torch.long, device=logits.device)
    return logits.float().div(temperature).index_fill(-1, banned, float("-inf"))


def response_logprobs(vlm: VisionLanguageModel, batch: ResponseBatch, *, temperature: float) -> ResponseLogprobs:
    """Teacher-forced log-probs of every response token at `temperature`.

    The vocabulary projection runs over the response columns only.
    """
    mask_BT = batch.response_mask_BT
    with vlm.precision():
        output = vlm.model(**batch.inputs, use_cache=False, logits_to_keep=mask_BT.shape[1] + 1)
    logits_BTV = output.logits[:, :-1]
    log_distribution_NV = sampled_logits(logits_BTV[mask_BT], vlm.banned_ids, temperature).log_softmax(-1)
    logprobs_N = log_distribution_NV.gather(-1, batch.response_ids_BT[mask_BT][:, None]).squeeze(-1)
    with torch.no_grad():
        entropy_N = torch.special.entr(log_distribution_NV.exp()).sum(-1)
    zeros_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    return ResponseLogprobs(zeros_BT.masked_scatter(mask_BT, logprobs_N), zeros_BT.masked_scatter(mask_BT, entropy_N))
