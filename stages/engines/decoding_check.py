"""Whether our decoding loop samples what a model says: asked once, of a made-up prompt."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from stages.engines.decoding import Decoder, Numbered
from stages.engines.protocol import Completion, Request, Sampling
from stages.model.batches import encode_prompt
from stages.model.layout import Reading
from stages.model.logprobs import made_up_prompt, plain_reading
from stages.model.tree_attention import takes_trees

logger = logging.getLogger(__name__)

_SAMPLING = Sampling(max_new_tokens=12)
_BLOCK = 4


@torch.inference_mode()
def agrees(decoder: Decoder) -> bool:
    """Whether the log-probs of what the loop samples, with a draft that is right and one that is wrong, are those of
    plain rows.

    False where the model's attention takes no packed rows: other attention, sliding windows, recurrent layers.
    """
    vlm = replace(decoder.vlm.exact(), max_length=None)
    architecture = type(vlm.model).__name__
    if not takes_trees(vlm.model):
        logger.info("%s: transformers' own generate, its attention takes no packed rows", architecture)
        return False
    prompt = made_up_prompt(vlm)
    encoded = encode_prompt(vlm, prompt)
    trial = Decoder(vlm, rows=2, prompt_tokens=decoder.prompt_tokens, draft_block=_BLOCK)

    def sample(draft_ids: list[int]) -> list[Completion]:
        return trial.generate([Numbered(0, Request(prompt, 2, draft_ids))], _SAMPLING)[0]

    found = sample(sample([])[0].ids)
    plain = plain_reading(vlm, [Reading(encoded, completion.ids) for completion in found])
    sampled = [logprob for completion in found for logprob in completion.logprobs]
    difference = plain.difference(torch.tensor(sampled, device=plain.logprobs_N.device))
    if difference > plain.tolerance:
        logger.warning("%s: transformers' own generate, our loop is off by %.2g", architecture, difference)
    return difference <= plain.tolerance
