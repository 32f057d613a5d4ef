"""The vLLM engine: continuous batching on GPUs, or on a CPU with AVX2; scoring stays with transformers."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.engines.protocol import Completion, Generator, Request, Sampling, ScoreRequest, TokenScores, overflows
from stages.errors import ModelError, RecipeError
from stages.model.batches import encode_prompt, fits
from stages.model.codec import Codec
from stages.model.prompts import Prompt
from stages.model.torchvision_ops import declare_in_child_processes
from stages.runtime import processes
from stages.sections import ModelSection, VllmSection
from stages.seeds import Purpose, derive_seed

MOST_BANNED_IDS = 1024
"""vLLM keeps no more biases of a request on a GPU."""
LOWEST_TEMPERATURE = 0.01
"""vLLM takes it in the place of lower ones, but for 0."""

_SETTINGS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",  # it would tell a server of every start
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would share a CUDA that this process has asked about already
}
_CPU_SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound, they would wait for this process's own threads
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
_OWN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
_LAUNCHED = re.compile(r"((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+")
"""What `accelerate launch` tells its processes about each other."""


@dataclass(frozen=True)
class _Numbered:
    """A request with its place among those of all processes, which its seed is derived from."""

    index: int
    request: Request


class VllmEngine:
    """vLLM with one checkpoint: generates; `scorer` opens the transformers engine that scores, when first asked."""

    embedded = False

    def __init__(
        self, folder: Path, codec: Codec, model: ModelSection, vllm: VllmSection, scorer: Callable[[], Generator]
    ) -> None:
        """Start it.

        Raises:
            ModelError: more ids must not be sampled than vLLM can keep out.
        """
        if len(codec.banned_ids) > MOST_BANNED_IDS:
            raise ModelError(
                f"{folder}: {len(codec.banned_ids)} ids may not be sampled, vLLM keeps out {MOST_BANNED_IDS}; "
                "set engine.name=transformers"
            )
        self._folder = str(folder)
        self._open_scorer = scorer
        self._llm = _start(folder, model, vllm)
        self.codec = replace(codec, max_length=self._llm.model_config.max_model_len)

    @cached_property
    def _scorer(self) -> Generator:
        return self._open_scorer()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        if 0 < sampling.temperature < LOWEST_TEMPERATURE:
            raise RecipeError(
                f"the sampling temperature is {sampling.temperature}, but vLLM samples at {LOWEST_TEMPERATURE} or "
                "more; raise it, or set engine.name=transformers"
            )
        numbered = [_Numbered(index, request) for index, request in enumerate(requests)]
        return processes.spread(numbered, lambda share: self._generate(share, sampling))

    def score(self, requests: Sequence[ScoreRequest], *, temperature: float) -> list[TokenScores]:
        """vLLM's own log-probs of given tokens know neither a temperature nor ids that are banned."""
        return self._scorer.score(requests, temperature=temperature)

    def follow(self, save: Callable[[Path], None], folder: Path) -> None:
        save(folder)
        self._read(folder)
        if processes.is_main():
            shutil.rmtree(folder)

    def take(self, folder: Path, scorer: Callable[[], Generator]) -> None:
        """Go on with the weights of another checkpoint; `scorer` as at the start."""
        self._read(folder)
        self._open_scorer = scorer
        vars(self).pop("_scorer", None)

    def _read(self, folder: Path) -> None:
        """Put a checkpoint's weights into the running engine; every process has to ask."""
        processes.wait()
        self._llm.collective_rpc("take_weights", args=(str(folder),))
        # An engine in this process would look there for the processor too.
        self._llm.model_config.model = self._folder
        # They hold what the old weights made of prompts and images.
        self._llm.reset_prefix_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self._llm.reset_mm_cache()
        processes.wait()

    def _generate(self, share: Sequence[_Numbered], sampling: Sampling) -> list[list[Completion]]:
        completions: list[list[Completion]] = [[] for _ in share]
        inputs, parameters, expected = [], [], {}
        for place, numbered in enumerate(share):
            encoded = encode_prompt(self.codec, numbered.request.prompt)
            if fits(self.codec, encoded, sampling.max_new_tokens):
                expected[place] = encoded.ids
                inputs.append(self._input(numbered.request.prompt))
                parameters.append(self._parameters(numbered, sampling))
        with torch.random.fork_rng(devices=[]):  # an engine in this process draws from the global generator as well
            outputs = self._llm.generate(inputs, parameters, use_tqdm=False) if inputs else []
        for (place, ids), output in zip(expected.items(), outputs, strict=True):
            _check_prompt(output.prompt_token_ids, ids)
            completions[place] = [_completion(sampled, self._folder) for sampled in output.outputs]
            if sampling.temperature == 0:
                completions[place] *= share[place].request.n
        return completions

    def _input(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt with placeholders that vLLM expands."""
        tokenizer = self.codec.tokenizer
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

    def _parameters(self, numbered: _Numbered, sampling: Sampling) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            # Greedily there is but one completion, and vLLM wants to make no more.
            n=1 if sampling.temperature == 0 else numbered.request.n,
            temperature=sampling.temperature,
            seed=derive_seed(sampling.seed, Purpose.VLLM_REQUESTS, numbered.index) >> 1,
            max_tokens=sampling.max_new_tokens,
            logprobs=0,
            logit_bias=dict.fromkeys(self.codec.banned_ids, float("-inf")),
            stop_token_ids=list(self.codec.end_ids),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def _start(folder: Path, model: ModelSection, vllm: VllmSection) -> Any:
    on_cpu = not torch.cuda.is_available()
    pixels = {"min_pixels": model.min_pixels, "max_pixels": model.max_pixels}
    given = {"max_model_len": vllm.max_model_len, "distributed_executor_backend": vllm.distributed_executor}
    with _environment(on_cpu), _interrupts_held(), torch.random.fork_rng(devices=[]):
        from vllm import LLM

        return LLM(
            str(folder),
            dtype=model.dtype,
            load_format="safetensors",
            trust_remote_code=model.trust_remote_code,
            mm_processor_kwargs={name: value for name, value in pixels.items() if value is not None} or None,
            tensor_parallel_size=vllm.tensor_parallel_size,
            gpu_memory_utilization=vllm.gpu_memory_utilization,
            enforce_eager=on_cpu,
            # Every request has a seed, and a CPU's seeded generator cannot go back behind a part of a prompt.
            enable_chunked_prefill=not on_cpu,
            # Of the distribution that is sampled, which the checkpoint's own sampling defaults would change.
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            worker_extension_cls="stages.engines.vllm_worker.TakesWeights",
            **{name: value for name, value in given.items() if value is not None},
        )


@contextmanager
def _environment(on_cpu: bool) -> Iterator[None]:
    """What vLLM reads when it starts; variables that the user has set stay as they are.

    In one process on a CPU it starts within this process, in a tenth of the time. Of several processes each starts an
    engine of its own, which must not take itself for one of theirs, on its own GPU.
    """
    alone = processes.count() == 1
    settings = _SETTINGS | ((_CPU_SETTINGS | {_OWN_PROCESS: "0" if alone else "1"}) if on_cpu else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    declare_in_child_processes()
    before = dict(os.environ)
    for name in filter(_LAUNCHED.fullmatch, before):
        del os.environ[name]
    if not (alone or on_cpu):
        os.environ["CUDA_VISIBLE_DEVICES"] = _own_gpu(before.get("CUDA_VISIBLE_DEVICES"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that is started inside never hears SIGINT: Ctrl-C reaches all processes of a terminal, and the one that
    is asked to stop has to finish its shard first."""
    resource_tracker.ensure_running()  # its start would end the hold
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _own_gpu(visible: str | None) -> str:
    index = processes.device().index
    return str(index) if visible is None else visible.split(",")[index]


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
