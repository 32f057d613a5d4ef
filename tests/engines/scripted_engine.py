"""An engine without a model: what a prompt's responses are drawn from is made of the prompt's own bytes."""

import hashlib

import numpy as np
import torch

from stages.engines.protocol import Completion, TokenScores
from stages.model.batches import encode_prompt, fits
from stages.model.head import sampled_logits


class ScriptedEngine:
    """Token t of a response is drawn from row t of the prompt's table, whatever came before it."""

    embedded = False

    def __init__(self, codec):
        self.codec = codec

    def logits(self, prompt, length):
        """The table (T, V); what may not be sampled stands far above the rest."""
        encoded = encode_prompt(self.codec, prompt)
        content = hashlib.sha256(repr(encoded.ids).encode())
        for name in sorted(encoded.vision):
            content.update(encoded.vision[name].numpy().tobytes())
        vocabulary = max(len(self.codec.tokenizer), *(token + 1 for token in self.codec.banned_ids))
        rng = np.random.default_rng(list(content.digest()))
        table_TV = torch.from_numpy(3 * rng.standard_normal((length, vocabulary)))
        table_TV[:, list(self.codec.banned_ids)] += 50
        return table_TV

    def generate(self, requests, sampling):
        return [self._group(place, request, sampling) for place, request in enumerate(requests)]

    def stream(self, batches):
        return (self.generate(batch.requests, batch.sampling) for batch in batches)

    def score(self, requests, *, temperature):
        return [self._scores(request, temperature) for request in requests]

    def _scores(self, request, temperature):
        length = len(request.ids)
        logprobs_TV = self._logprobs(self.logits(request.prompt, length), temperature)
        entropies_T = torch.special.entr(logprobs_TV.exp()).sum(-1)
        others_TV = self._logprobs(self.logits(request.against or request.prompt, length), temperature)
        allowed = logprobs_TV > -torch.inf
        apart_TV = torch.where(allowed, logprobs_TV.exp() * (logprobs_TV - others_TV), 0)
        logprobs_T = logprobs_TV[range(length), list(request.ids)]
        return TokenScores(logprobs_T.tolist(), entropies_T.tolist(), apart_TV.sum(-1).tolist())

    def _group(self, place, request, sampling):
        if not fits(self.codec, encode_prompt(self.codec, request.prompt), sampling.max_new_tokens):
            return []
        logprobs_TV = self._logprobs(self.logits(request.prompt, sampling.max_new_tokens), sampling.temperature or 1.0)
        rng = np.random.default_rng([sampling.seed, place])
        return [self._completion(logprobs_TV, rng, greedy=sampling.temperature == 0) for _ in range(request.n)]

    def _completion(self, logprobs_TV, rng, *, greedy):
        ids = [
            int(row_V.argmax()) if greedy else int(rng.choice(len(row_V), p=row_V.exp().numpy()))
            for row_V in logprobs_TV
        ]
        ends = [place for place, token in enumerate(ids) if token in self.codec.end_ids]
        ids = ids[: ends[0] + 1] if ends else ids
        return Completion(ids, logprobs_TV[range(len(ids)), ids].tolist(), "stop" if ends else "length")

    def _logprobs(self, table_TV, temperature):
        return sampled_logits(table_TV, self.codec.banned_ids, temperature).double().log_softmax(-1)
