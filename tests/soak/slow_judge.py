"""How many requests a rollout keeps under way at a judge that takes seconds to answer."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from scripted_server import ScriptedServer, Special, completion, data_of, serving
from stages.artifacts.stage import execute
from stages.engines.protocol import Completion, Request, Sampling
from stages.reward.judge import JudgeReward
from stages.s3_rollout import Rollout
from sums import SumEngine, SumModels, recipe

SAMPLE_EVERY_S = 0.01
MIDDLE = (0.1, 0.9)
"""Of the time from the first request to the last: what the occupancy is a mean over."""


class Occupancy(NamedTuple):
    seconds: float
    """Of the whole stage."""
    bound_s: float
    """What the judge alone takes with all its places filled."""
    share: float
    """Of the places filled, over the middle of the run."""
    most: int
    """Requests under way at once."""


def measure(
    folder: Path,
    out: Path,
    *,
    problems: int,
    limit: int,
    answer_s: float,
    spread_s: float,
    generate_s: float,
    ahead: bool,
) -> Occupancy:
    """Roll out `problems` sums with two responses each, 256 responses a shard.

    The judge answers after `answer_s` give or take `spread_s`, the engine takes `generate_s` a shard; `ahead` is
    whether a shard is judged while the next is generated.
    """
    with (
        patch.object(JudgeReward, "waits", ahead),
        serving(_judge(answer_s, spread_s)) as server,
        _sampled(server) as samples,
    ):
        endpoint = {"base_url": server.url, "model": "m", "concurrency": limit, "cache": str(out / "verdicts")}
        settings = recipe("reward.name=judge", f"reward.judge={json.dumps(endpoint)}", f"rollout.problems={problems}")
        started = time.monotonic()
        models = SumModels(_paced(generate_s))
        execute(Rollout(settings, folder / "problems.parquet", folder / "model", models=models), out / "rollout")
        seconds = time.monotonic() - started
    assert len(server.requests) == 2 * problems
    first, last = server.times[0], server.times[-1] + answer_s
    low, high = (first + part * (last - first) for part in MIDDLE)
    middle = [count for at, count in samples if low <= at <= high]
    bound_s = 2 * problems * answer_s / limit
    return Occupancy(seconds, bound_s, sum(middle) / len(middle) / limit, server.most_under_way)


def _paced(generate_s: float) -> type[SumEngine]:
    class PacedEngine(SumEngine):
        def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
            time.sleep(generate_s)
            return super().generate(requests, sampling)

    return PacedEngine


def _judge(answer_s: float, spread_s: float) -> Callable[[ScriptedServer, Any, int], Special]:
    rng = random.Random(0)

    def script(_server: ScriptedServer, request: Any, _number: int) -> Special:
        case = data_of(request)
        is_right = case["response"].endswith(f"The answer is {case['reference_answer']}.")
        verdict = {"reason": "compared", "verdict": "correct" if is_right else "incorrect"}
        seconds = answer_s + rng.uniform(-spread_s, spread_s)
        return Special(json.dumps(completion(verdict)).encode(), silence_s=seconds)

    return script


@contextmanager
def _sampled(server: ScriptedServer) -> Iterator[list[tuple[float, int]]]:
    """Times, and how many requests were under way."""
    samples: list[tuple[float, int]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_EVERY_S):
            samples.append((time.monotonic(), server.under_way))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()
