"""What a feed supplies vLLM with, request by request: prompts that it expands itself, seeds, and what comes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch

from stages.engines.protocol import Completion, Request, Sampling, overflows
from stages.errors import ModelError
from stages.model.batches import encode_prompt, fits
from stages.model.codec import Codec
from stages.model.prompts import Prompt
from stages.seeds import Purpose, derive_seed


@dataclass(frozen=True)
class Ask:
    """A request with its place among those of its batch at all processes, which its seed is derived from."""

    index: int
    request: Request
    sampling: Sampling


class _UnderWay(NamedTuple):
    number: int
    ask: Ask
    prompt_ids: Sequence[int]


class VllmRequests:
    """vLLM, asked request by request: what a `Feed` supplies."""

    def __init__(self, llm: Any, codec: Codec, folder: str) -> None:
        self.llm = llm
        self.codec = codec
        self.folder = folder
        self._under_way: dict[str, _UnderWay] = {}
        """By the name that vLLM gives to a request."""
        self._without_room: list[int] = []

    def begin(self, number: int, ask: Ask) -> None:
        encoded = encode_prompt(self.codec, ask.request.prompt)
        if not fits(self.codec, encoded, ask.sampling.max_new_tokens):
            self._without_room.append(number)
            return
        (name,) = self.llm.enqueue(
            [unexpanded(self.codec, ask.request.prompt)], [_parameters(self.codec, ask)], use_tqdm=False
        )
        # It adds a suffix of its own, which its outputs lack.
        self._under_way[name.partition("-")[0]] = _UnderWay(number, ask, encoded.ids)

    def step(self) -> Mapping[int, list[Completion]]:
        if self._without_room:
            ended, self._without_room = self._without_room, []
            return {number: [] for number in ended}
        with torch.random.fork_rng(devices=[]):  # an engine in this process draws from the global generator as well
            outputs = self.llm.llm_engine.step()
        return dict(self._ended(output) for output in outputs if output.finished)

    def abort(self, numbers: Sequence[int]) -> None:
        names = [name for name, under_way in self._under_way.items() if under_way.number in numbers]
        self.llm.llm_engine.abort_request(names)
        for name in names:
            del self._under_way[name]

    def _ended(self, output: Any) -> tuple[int, list[Completion]]:
        number, ask, prompt_ids = self._under_way.pop(output.request_id)
        _check_prompt(output.prompt_token_ids, prompt_ids)
        group = [_completion(sampled, self.folder) for sampled in output.outputs]
        return number, group * ask.request.n if ask.sampling.temperature == 0 else group


def unexpanded(codec: Codec, prompt: Prompt) -> dict[str, Any]:
    """The prompt with placeholders that vLLM expands."""
    tokenizer = codec.tokenizer
    ids = [*tokenizer(prompt.text, add_special_tokens=False)["input_ids"], *prompt.spliced_ids]
    if prompt.tail:
        ids += tokenizer(prompt.tail, add_special_tokens=False)["input_ids"]
    media: dict[str, Any] = {"image": list(prompt.images)} if prompt.images else {}
    if prompt.video is not None:
        frames = np.stack([np.asarray(frame.convert("RGB")) for frame in prompt.video.decoded()])
        metadata = {
            "fps": prompt.video.fps,
            "total_num_frames": len(frames),
            "frames_indices": list(range(len(frames))),
            "duration": len(frames) / prompt.video.fps,
            "video_backend": "frames",
            "do_sample_frames": False,
        }
        media["video"] = [(frames, metadata)]
    return {"prompt_token_ids": ids} | ({"multi_modal_data": media} if media else {})


def _parameters(codec: Codec, ask: Ask) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = ask.sampling
    return SamplingParams(
        # Greedily there is but one completion, and vLLM wants to make no more.
        n=1 if sampling.temperature == 0 else ask.request.n,
        temperature=sampling.temperature,
        seed=derive_seed(sampling.seed, Purpose.VLLM_REQUESTS, ask.index) >> 1,
        max_tokens=sampling.max_new_tokens,
        logprobs=0,
        logit_bias=dict.fromkeys(codec.banned_ids, float("-inf")),
        stop_token_ids=list(codec.end_ids),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion(output: Any, folder: str) -> Completion:
    ids = list(output.token_ids)
    logprobs = [step[token].logprob for step, token in zip(output.logprobs, ids, strict=True)]
    if any(map(math.isnan, logprobs)):
        raise overflows(folder)
    return Completion(ids, logprobs, output.finish_reason)


def _check_prompt(found: Sequence[int], expected: Sequence[int]) -> None:
    """Raises:
    ModelError: vLLM made other ids of a prompt than scoring and training do.
    """
    if list(found) == list(expected):
        return
    place = next(i for i, (a, b) in enumerate(zip_longest(found, expected)) if a != b)
    raise ModelError(
        f"vLLM read a prompt as {len(found)} ids, this project as {len(expected)}; they differ from id {place} on: "
        f"{list(found[place : place + 5])}, {list(expected[place : place + 5])}; set engine.name=transformers"
    )
