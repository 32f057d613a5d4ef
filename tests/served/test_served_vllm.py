"""The judge and the auditor on a real server: vLLM with a tiny random model, which decodes replies by their schema."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from injections import ORDERS
from stages.artifacts.ledger import CostLedger
from stages.audit.auditor import AuditCase
from stages.audit.opening import open_auditor
from stages.core.alignment import edit_cost
from stages.engines.protocol import Completion
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import EndpointError
from stages.recipe import load_recipe
from stages.repair.answering import Answerer
from stages.repair.repairs import Attempt
from stages.reward.judge import JudgeReward
from stages.training.heldout import annotated_draft, with_end

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
START_S = 300
SETTINGS = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
# On a CPU vLLM 0.32 dies when it prefills a request that has a seed in pieces.
FLAGS = ("--dtype=float32", "--enforce-eager", "--max-model-len=4096", "--no-enable-chunked-prefill",
         "--host=127.0.0.1", "--served-model-name=tiny",
         '--structured-outputs-config={"backend":"xgrammar","disable_any_whitespace":true}')  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny_vlm, tmp_path_factory):
    """The address of a running server."""
    folder = tmp_path_factory.mktemp("served")
    tiny_vlm.save(folder / "model")
    _lengthen(folder / "model" / "config.json")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(ROOT / "stages" / "model" / "child_processes"), str(ROOT)])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder / 'model'}", *FLAGS]
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, f"--port={port}"], stdout=out, stderr=out, env=os.environ | SETTINGS | {"PYTHONPATH": path}
        )
    try:
        _wait_until_up(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def _lengthen(config):
    """The instructions alone have a thousand tokens of this tokenizer."""
    text = config.read_text()
    assert '"max_position_embeddings": 1024' in text
    config.write_text(text.replace('"max_position_embeddings": 1024', '"max_position_embeddings": 4096'))


def _wait_until_up(process, url, log):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"vLLM's server did not start:\n{log.read_text()[-4000:]}")


@pytest.fixture
def recipe_of(server, tmp_path):
    """A function: a recipe whose judge and auditor are the server."""

    def make(*settings):
        options = (f"base_url={server}", "model=tiny", f"cache={tmp_path / 'cache'}", "max_null_share=1",
                   "temperature=1", "retries=2", "timeout_s=300", "concurrency=32")  # fmt: skip
        served = [f"{place}.{option}" for place in ("reward.judge", "audit.endpoint") for option in options]
        return load_recipe("digits", ["reward.name=judge", "audit.auditor=served", *served, *settings])

    return make


def test_the_judge_gives_verdicts_whatever_the_responses_say(recipe_of, problems):
    """The model is random: each verdict is one of the two or null, and a second run has the same from the cache."""
    section = recipe_of().reward
    rows = [problem.as_row() for problem in (problems * 2)[: len(ORDERS)]]
    rewards = JudgeReward(section).score_many(ORDERS, rows)
    assert set(rewards) <= {0.0, 1.0, None}
    assert sum(reward is not None for reward in rewards) >= 0.8 * len(ORDERS)
    dead = section.judge.model_copy(update={"base_url": "http://127.0.0.1:9/v1", "retries": 0})
    again = JudgeReward(section.model_copy(update={"judge": dead})).score_many(ORDERS, rows)
    assert again == rewards


def test_the_auditor_gives_verdicts(recipe_of, base_vlm, repair_problems, math_reward):
    recipe = recipe_of("audit.endpoint.verdicts=3")
    policy = Answerer(TransformersEngine(base_vlm, rows_per_batch=8), recipe.prompt, math_reward, CostLedger())
    cases = []
    for problem in repair_problems[:4]:
        draft, text = annotated_draft(base_vlm, problem), problem.extra["repair"]
        ids = with_end(base_vlm, text)
        attempt = Attempt(draft, 0, Completion(ids, [], "stop"), text, 1.0, edit_cost(draft.ids, ids))
        cases.append(AuditCase(attempt, image_free=["No image, no answer."]))
    verdicts = open_auditor(recipe, policy).audit(cases)
    assert [verdict.flagged for verdict in verdicts].count(None) <= 1
    for verdict in verdicts:
        assert (verdict.category is not None) == (verdict.evidence is not None) == (verdict.flagged is True)


def test_a_response_too_long_for_the_model_is_null(recipe_of, problems):
    section = recipe_of().reward
    with JudgeReward(section) as judge:
        assert judge.score_many(["1 + 1 = 2. " * 5000], [problems[0].as_row()]) == [None]


def test_a_model_that_is_not_served_stops_the_stage(recipe_of, problems):
    section = recipe_of("reward.judge.model=other").reward
    with pytest.raises(EndpointError, match=r"refuses \(HTTP 404: .*other.*check base_url, model other and no key"):
        JudgeReward(section).score_many(["x"], [problems[0].as_row()])
