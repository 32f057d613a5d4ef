"""Stages with a served judge and auditor: a server that dies stops them, and they go on where they stopped."""

import json

import pyarrow.parquet as pq
import pytest

from forked import df_pair
from scripted_server import completion, data_of, refusal, serving
from stages import summary
from stages.artifacts.columns import EPISODES, REPAIRS, ROLLOUTS
from stages.artifacts.manifests import read_manifest
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.errors import EndpointError
from stages.recipe import load_recipe
from stages.s2_rl_repair import RlRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.served import endpoint

pytestmark = pytest.mark.timeout(600)

KEY = "sk-never-to-be-seen-in-a-file"
SMALL = (
    "rollout.problems=12", "rollout.samples_per_problem=4", "rollout.rows_per_shard=16",
    "repair_rl.problems=12", "repair_rl.iterations=2", "repair_rl.errors_per_iteration=6",
    "repair_rl.errors_per_step=6", "repair_rl.repairs_per_error=4", "repair_rl.text_only_tries=0",
)  # fmt: skip


class Server:
    """Judges by the end of the response, flags a repair whose text has an even length; `alive` requests, then 503."""

    def __init__(self):
        self.alive = float("inf")

    def __call__(self, _server, request, _number):
        if self.alive <= 0:
            return refusal(503, "shutting down")
        self.alive -= 1
        data = data_of(request)
        if "response" in data:
            right = data["response"].endswith(f"The answer is {data['reference_answer']}.")
            return completion({"reason": "r", "verdict": "correct" if right else "incorrect"})
        flagged = len(data["repair"]) % 2 == 0
        category = "answer_pasted" if flagged else "none"
        return completion({"reason": "r", "evidence": data["repair"][-9:] if flagged else "", "category": category})


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_DELAY_S", 0.01)


@pytest.fixture
def script():
    return Server()


@pytest.fixture
def server(script):
    with serving(script) as running:
        yield running


@pytest.fixture
def recipe_of(server, tmp_path, monkeypatch):
    """A function: a small recipe with these settings and the server, whose key is in the environment."""
    monkeypatch.setenv("DF_TEST_KEY", KEY)

    def make(*settings):
        options = (f"base_url={server.url}", "model=tiny", "api_key_env=DF_TEST_KEY", "retries=1",
                   f"cache={tmp_path / 'cache'}")  # fmt: skip
        served = [f"{place}.{option}" for place in ("reward.judge", "audit.endpoint") for option in options]
        return load_recipe("digits", [*SMALL, *served, *settings])

    return make


def assert_no_key(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".safetensors"]
    assert files
    assert not any(KEY.encode() in file.read_bytes() for file in files)


@pytest.fixture(scope="module")
def digits_rollouts(tmp_path_factory, digits):
    """Rollouts scored by rule."""
    out = tmp_path_factory.mktemp("scored") / "rollouts"
    execute(Rollout(load_recipe("digits", SMALL), digits / "problems_train.parquet", digits / "base"), out)
    return out


def test_a_judge_scores_rollouts_and_a_dead_one_stops_them(recipe_of, script, server, tmp_path, digits, caplog):
    stage = Rollout(recipe_of("reward.name=judge"), digits / "problems_train.parquet", digits / "base")
    out = tmp_path / "out"
    script.alive = 20
    with pytest.raises(
        EndpointError, match=r"reward\.judge: \d+ of \d+ verdicts of tiny .* run the same command again"
    ):
        execute(stage, out)
    assert sorted(file.name for file in out.glob("*.parquet")) == ["rollouts-00000.parquet"]
    answered = 20
    with pytest.raises(EndpointError):
        execute(stage, out)
    script.alive = float("inf")
    failed = len(server.requests) - answered
    manifest = execute(stage, out).manifest
    rows = list(iterate_rows(out, ROLLOUTS))
    assert [row["reward"] for row in rows] == [_rule(row, digits) for row in rows]
    assert manifest["counts"]["unscored"] == 0
    different = {(row["problem_id"], row["text"]) for row in rows}
    assert len(server.requests) - failed == len(different)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert_no_key(out)
    assert KEY not in caplog.text
    assert manifest["recipe"]["reward"]["judge"]["model"] == "tiny"

    before = len(server.requests)
    execute(stage, tmp_path / "again")
    assert list(iterate_rows(tmp_path / "again", ROLLOUTS)) == rows
    assert len(server.requests) == before


def _rule(row, digits):
    table = pq.read_table(digits / "problems_train.parquet", columns=["problem_id", "answer"])
    answers = dict(zip(table["problem_id"].to_pylist(), table["answer"].to_pylist(), strict=True))
    return float(row["text"].endswith(f"The answer is {answers[row['problem_id']]}."))


def test_without_a_judge_rollouts_are_sampled_and_not_scored(tmp_path, digits):
    settings = ["reward.name=none", "rollout.problems=2", "rollout.samples_per_problem=2", "rollout.max_new_tokens=8"]
    stage = Rollout(load_recipe("digits", settings), digits / "problems_train.parquet", digits / "base")
    manifest = execute(stage, tmp_path / "out").manifest
    assert [row["reward"] for row in iterate_rows(tmp_path / "out", ROLLOUTS)] == [None] * 4
    counted = {"responses": 4, "responses_cut": 4, "responses_without_final_answer": 0}
    assert manifest["counts"] == counted | {"unscored": 4, "correct": 0}


def test_nulls_of_the_judge_are_counted_and_no_reward(recipe_of, server, script, tmp_path, digits):
    def now_and_then(running, request, number):
        return refusal(500) if "1" in data_of(request)["response"][:20] else script(running, request, number)

    server.script = now_and_then
    recipe = recipe_of("reward.name=judge", "reward.judge.max_null_share=1", "reward.judge.retries=3")
    manifest = execute(Rollout(recipe, digits / "problems_train.parquet", digits / "base"), tmp_path / "out").manifest
    rows = list(iterate_rows(tmp_path / "out", ROLLOUTS))
    unscored = [row["reward"] is None for row in rows]
    assert unscored == ["1" in row["text"][:20] for row in rows]
    assert 0 < sum(unscored) == manifest["counts"]["unscored"] < len(rows)


def test_a_served_auditor_of_candidates(recipe_of, script, server, tmp_path, digits, digits_rollouts):
    recipe = recipe_of("audit.auditor=served", "masks.candidates=4")
    base = digits / "base"
    stage = BuildMasks(recipe, digits_rollouts, digits / "problems_train.parquet", base, base)
    out = tmp_path / "out"
    script.alive = 0
    with pytest.raises(EndpointError, match=r"audit\.endpoint: "):
        execute(stage, out)
    script.alive = float("inf")
    failed = len(server.requests)
    counts = execute(stage, out).manifest["counts"]
    rows = list(iterate_rows(out, REPAIRS))
    assert len(rows) == counts["candidates"]
    for row in rows:
        flagged = row["reward"] == 1 and len(row["text"]) % 2 == 0
        assert row["flagged"] is flagged
        assert row["category"] == ("answer_pasted" if flagged else None)
        assert row["evidence"] == (row["text"][-9:] if flagged else None)
        assert (row["selection"] == "flagged") is flagged
    assert 0 < sum(row["flagged"] for row in rows) == counts["candidates_flagged"]
    assert len(server.requests) - failed <= counts["candidates_correct"]
    assert {data_of(request)["draft"] for request in server.requests} <= {
        row["text"] for row in iterate_rows(digits_rollouts, ROLLOUTS)
    }
    assert_no_key(out)


def test_candidates_without_a_verdict_are_counted_and_not_chosen(recipe_of, server, tmp_path, digits, digits_rollouts):
    server.script = lambda *_: refusal(500)
    recipe = recipe_of("audit.auditor=served", "audit.endpoint.max_null_share=1", "audit.endpoint.retries=3")
    base = digits / "base"
    stage = BuildMasks(recipe, digits_rollouts, digits / "problems_train.parquet", base, base)
    counts = execute(stage, tmp_path / "out").manifest["counts"]
    rows = list(iterate_rows(tmp_path / "out", REPAIRS))
    assert {row["selection"] for row in rows if row["reward"] == 1} == {"unaudited"}
    assert 0 < sum(row["flagged"] is None for row in rows) == counts["candidates_unaudited"]
    assert counts["errors_repaired"] == 0


def test_a_served_auditor_of_repair_rl(recipe_of, script, server, tmp_path, digits):
    recipe = recipe_of("audit.auditor=served", "rollout.temperature=1.0")
    base = digits / "base"
    stage = RlRepair(recipe, digits / "problems_train.parquet", base, base)
    out = tmp_path / "out"
    script.alive = 5
    with pytest.raises(EndpointError, match=r"audit\.endpoint: "):
        execute(stage, out)
    script.alive = float("inf")
    answered = {json.dumps(data_of(request)) for request in server.requests[:5]}
    had = len(server.requests)
    manifest = execute(stage, out).manifest
    assert answered.isdisjoint(json.dumps(data_of(request)) for request in server.requests[had:])
    rows = list(iterate_rows(out / "episodes.parquet", EPISODES))
    for row in rows:
        flagged = row["reward"] == 1 and len(row["text"]) % 2 == 0
        assert row["gate_audit"] is not flagged
        assert row["evidence"] == (row["text"][-9:] if flagged else None)
        if flagged:
            assert row["repair_reward"] == 0
    assert 0 < manifest["counts"]["repairs_flagged"] == manifest["counts"]["flagged_answer_pasted"]
    assert (manifest["counts"]["repairs_unaudited"], manifest["counts"]["repairs_unscored"]) == (0, 0)
    assert all(len(data_of(request)["repairs_without_image"]) == 2 for request in server.requests)
    assert_no_key(out)


def test_repairs_without_a_verdict_are_counted_and_not_trained_on(recipe_of, server, tmp_path, digits):
    server.script = lambda *_: refusal(500)
    settings = ("audit.endpoint.max_null_share=1", "audit.endpoint.retries=3", "repair_rl.c1=false")
    recipe = recipe_of("audit.auditor=served", *settings)
    base = digits / "base"
    stage = RlRepair(recipe, digits / "problems_train.parquet", base, base)
    manifest = execute(stage, tmp_path / "out").manifest
    rows = list(iterate_rows(tmp_path / "out" / "episodes.parquet", EPISODES))
    for row in rows:
        assert (row["gate_audit"], row["repair_reward"] is None) == ((None, True) if row["reward"] else (True, False))
    unaudited = sum(row["gate_audit"] is None for row in rows)
    assert 0 < unaudited == manifest["counts"]["repairs_unaudited"] == manifest["dropped"]["without_reward"]
    assert not any("repairs_without_image" in data_of(request) for request in server.requests)


def test_the_marks_are_part_of_repair_rl_s_plan_where_the_auditor_sees_them(recipe_of, digits):
    def plan(*settings):
        base = digits / "base"
        return RlRepair(recipe_of(*settings), digits / "problems_train.parquet", base, base).plan().recipe

    assert plan("audit.auditor=served", "masks.align=lcs")["masks"]["align"] == "lcs"
    assert "masks" not in plan("masks.align=lcs")


def test_a_finished_step_stays_finished_at_another_address(recipe_of, tmp_path, digits):
    def stage(*settings):
        recipe = recipe_of("reward.name=judge", *settings)
        return Rollout(recipe, digits / "problems_train.parquet", digits / "base")

    assert execute(stage(), tmp_path / "out").ran
    elsewhere = ("reward.judge.base_url=http://127.0.0.1:9/v1", "reward.judge.concurrency=2")
    assert not execute(stage(*elsewhere), tmp_path / "out").ran
    assert read_manifest(tmp_path / "out")["recipe"]["reward"]["judge"].keys() == {
        "model", "temperature", "max_tokens", "verdicts",
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_share_the_requests_and_stop_together(recipe_of, server, script, tmp_path, digits):
    file = tmp_path / "recipe.yaml"
    judge = {"base_url": server.url, "model": "tiny", "api_key_env": "DF_TEST_KEY", "retries": 0, "concurrency": 4}
    judge["cache"] = str(tmp_path / "cache")
    prompt = recipe_of().prompt.model_dump()
    file.write_text(json.dumps({"model": {"dtype": "float32"}, "prompt": prompt, "reward": {"judge": judge}}))
    settings = [*SMALL[:3], "reward.name=judge", "rollout.max_new_tokens=72"]
    words = ["rollout", "--recipe", file, *(word for s in settings for word in ("--set", s))]
    words += ["--problems", digits / "problems_train.parquet", "--policy", digits / "base"]
    script.alive = 20
    stopped = df_pair(*words, "--out", tmp_path / "out")
    assert stopped.returncode != 0
    assert "error: reward.judge: " in stopped.stderr
    assert KEY not in stopped.stdout + stopped.stderr
    script.alive = float("inf")
    done = df_pair(*words, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(iterate_rows(tmp_path / "out", ROLLOUTS))
    assert [row["reward"] for row in rows] == [_rule(row, digits) for row in rows]
    assert server.most_under_way <= 4
    assert len(list((tmp_path / "cache").glob("verdicts-*.parquet"))) >= 2


def test_hit_rates_are_over_what_was_audited(recipe_of, script, server, tmp_path, digits):
    def sometimes(running, request, number):
        return refusal(500) if sum(map(ord, data_of(request)["repair"])) % 3 == 0 else script(running, request, number)

    server.script = sometimes
    recipe = recipe_of("audit.auditor=served", "audit.endpoint.max_null_share=1", "audit.endpoint.retries=3",
                       "rollout.temperature=1.2")  # fmt: skip
    base = digits / "base"
    execute(RlRepair(recipe, digits / "problems_train.parquet", base, base), tmp_path / "out")
    rows = list(iterate_rows(tmp_path / "out" / "episodes.parquet", EPISODES))
    audited = [row for row in rows if row["reward"] == 1 and row["gate_audit"] is not None]
    flagged = [row for row in audited if not row["gate_audit"]]
    measures = {measure.measure: measure for measure in summary.measure_gates(tmp_path / "out")}
    assert 0 < len(flagged) < len(audited) < sum(row["reward"] == 1 for row in rows) < len(rows)
    for name in ("audit hit rate", "audit hit rate, answer_pasted"):
        assert (measures[name].value, measures[name].n) == (len(flagged) / len(audited), len(audited))
    is_open = [row for row in audited if row["gate_c1"]]
    open_flagged = sum(not row["gate_audit"] for row in is_open)
    name = "audit hit rate, C1 open"
    assert (measures[name].value, measures[name].n) == (open_flagged / len(is_open), len(is_open))
