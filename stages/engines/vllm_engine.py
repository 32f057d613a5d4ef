"""The vLLM engine: continuous batching on GPUs, or on a CPU with AVX2; scoring stays with transformers."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch

from stages.engines.feed import Feed
from stages.engines.protocol import Batch, Completion, Generator, Request, Sampling, ScoreRequest, TokenScores
from stages.engines.vllm_requests import Ask, VllmRequests
from stages.errors import ModelError, RecipeError
from stages.model.codec import Codec
from stages.model.torchvision_ops import declare_in_child_processes
from stages.runtime import processes
from stages.sections import ModelSection, VllmSection

MOST_BANNED_IDS = 1024
"""vLLM keeps no more biases of a request on a GPU."""
LOWEST_TEMPERATURE = 0.01
"""vLLM takes it in the place of lower ones, but for 0."""
PROMPTS_AT_ONCE = 256
"""Whose images vLLM holds; more rows than that seldom fit beside each other."""

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
        self._feed = Feed(VllmRequests(self._llm, self.codec, self._folder), PROMPTS_AT_ONCE)

    @cached_property
    def _scorer(self) -> Generator:
        return self._open_scorer()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        (groups,) = self.stream([Batch(requests, sampling)])
        return groups

    def stream(self, batches: Iterable[Batch]) -> Iterator[list[list[Completion]]]:
        """Requests enter as others end.

        Not where vLLM schedules in this process, always alike: what runs beside a request moves the last bits of its
        log-probs, and a batch comes out the same wherever a stopped run goes on. An engine in a process of its own
        never promised that, but with VLLM_BATCH_INVARIANT=1, when nothing beside a request matters.
        """
        asked = map(_own_asks, batches)
        runs = ([own] for own in asked) if _is_in_this_process(self._llm) else [asked]
        for run in runs:
            yield from map(processes.join, self._feed.run(run))

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
        self.close_scorer()

    def close_scorer(self) -> None:
        """Leave off what scores; it is opened again when something is to be scored."""
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


def _own_asks(batch: Batch) -> Sequence[Ask]:
    """This process's share.

    Raises:
        RecipeError: vLLM would sample at another temperature.
    """
    if 0 < batch.sampling.temperature < LOWEST_TEMPERATURE:
        raise RecipeError(
            f"the sampling temperature is {batch.sampling.temperature}, but vLLM samples at {LOWEST_TEMPERATURE} or "
            "more; raise it, or set engine.name=transformers"
        )
    return processes.own([Ask(index, request, batch.sampling) for index, request in enumerate(batch.requests)])


def _is_in_this_process(llm: Any) -> bool:
    from vllm.v1.engine.core_client import InprocClient

    return isinstance(llm.llm_engine.engine_core, InprocClient)


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
