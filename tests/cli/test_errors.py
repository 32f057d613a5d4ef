"""What a user is told: one line with value, place and remedy, exit code 1, and nothing written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from workspace import GROUP, MODEL_FILES, OPTIONS, ROLLOUT, ROOT, listing

import forked
from stages.artifacts.columns import GROUPS, ROLLOUTS
from stages.artifacts.step import Plan, Step

GENERATING = ("repair-set sheet", "rl-repair", "rollout", "build-masks", "evaluate")


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("command", GENERATING)
def test_the_engine_is_an_option_of_what_generates_and_part_of_its_plan(command, df, monkeypatch):
    line = f"{command} {OPTIONS[command]} --out out --dry-run --engine"
    planned = json.loads(df(f"{line} transformers")[1])
    assert planned["recipe"]["engine"]["name"] == "transformers"
    monkeypatch.setitem(sys.modules, "vllm", None)  # as where it is not installed
    code, out, err = df(f"{line} vllm")
    assert (code, out) == (1, "")
    assert err.startswith("error: engine.name is vllm, which is not installed; pip install '.[vllm]'")


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("command", sorted(OPTIONS.keys() - {*GENERATING}))
def test_what_opens_no_engine_has_no_option_for_it_and_needs_none(command, df, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    line = f"{command} {OPTIONS[command]} --out out --dry-run"
    assert df(f"{line} --engine vllm")[0] == 2
    assert df(f"{line} --set engine.name=vllm")[0] == 0


@pytest.mark.parametrize("command", OPTIONS)
def test_a_dry_run_prints_the_plan_as_json_and_touches_nothing(command, workspace, df):
    before = listing(workspace)
    code, out, err = df(f"{command} {OPTIONS[command]} --out out --dry-run --seed 5 --set rollout.temperature=0.9")

    plan = json.loads(out)
    assert (code, err) == (0, "")
    assert (plan["step"], plan["seed"]) == (command, 5)
    assert plan["recipe"]["rollout"]["temperature"] == 0.9
    assert {Path(entry["path"]).name for entry in plan["inputs"].values()} <= set(before)
    assert listing(workspace) == before


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("command", OPTIONS)
def test_a_dry_run_estimates_what_it_takes(command, df):
    _, out, _ = df(f"{command} {OPTIONS[command]} --out out --dry-run")
    told = json.loads(out)["estimate"]
    # A copy of the digits base: the plan says GiB, of which the smallest of models has hundredths.
    assert 0 < told["device_gib"]["at_most"] < 1
    trains = command in ("sft-repair", "rl-repair", "train-policy")
    assert set(told["host_gib"]) == {"pixels"} | ({"saving"} if trains else set())
    model = {"model", "optimizer", "checkpoints_until_it_is_done"} if trains else set()
    tables = {
        "rollout": {"rollouts"},
        "build-masks": {"repairs", "groups"},
        "rl-repair": {"drafts", "episodes"},
        "evaluate": {"scores"},
        "repair-set sheet": {"drafts"},
    }
    assert set(told["disk_gib"]) == model | tables.get(command, set())
    weights = Path("model/model.safetensors").stat().st_size
    assert set(told["loads_gib"].values()) == {round(weights / 2**30, 2)}


@pytest.mark.parametrize("command", OPTIONS)
def test_a_missing_input_is_named_with_its_producer(command, workspace, df):
    option, value = OPTIONS[command].split()[:2]
    before = listing(workspace)
    code, out, err = df(f"{command} {OPTIONS[command]} {option} gone.parquet --out out")

    assert (code, out) == (1, "")
    spec = Path(value).stem
    producers = {
        "problems": "df import-problems, you, or data/digits/build.py",
        "rollouts": "df rollout",
        "groups": "df build-masks",
    }
    producer = producers.get(spec, "df repair-set read, you, or data/digits/build.py")
    assert err == f"error: gone.parquet: no such file or folder; {spec} is written by {producer}\n"
    assert listing(workspace) == before


@pytest.mark.parametrize("missing", MODEL_FILES)
def test_an_incomplete_model_folder_is_named_with_what_is_missing(missing, workspace, df):
    (workspace / "model" / missing).unlink()
    before = listing(workspace)
    code, out, err = df(f"rollout {OPTIONS['rollout']} --out out")

    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: model: ")
    assert missing.replace("model.safetensors", "*.safetensors") in line
    assert listing(workspace) == before


def test_a_model_folder_that_is_not_there_is_named(workspace, df):
    code, _, err = df("rollout --problems problems.parquet --policy nowhere --recipe digits --out out")

    assert code == 1
    assert err == "error: nowhere: no such model folder; give a folder with config.json or a hub name org/model\n"
    assert not (workspace / "out").exists()


@pytest.mark.parametrize("command", ["build-masks", "train-policy", "evaluate"])
def test_the_output_of_an_incomplete_step_is_refused(command, workspace, df):
    options = OPTIONS[command].split()
    first = {"build-masks": "rollouts", "train-policy": "groups", "evaluate": "model"}[command]
    stopped = Step.open(workspace / "stopped", Plan("earlier", {}, 0, {}))
    stopped.write_shards(0, {ROLLOUTS: [ROLLOUT], GROUPS: [GROUP]})
    line = " ".join("stopped" if value == first else value for value in options)
    code, _, err = df(f"{command} {line} --out out")

    assert code == 1
    assert err == "error: stopped: no manifest.json, so this step is not complete; run its command again\n"
    assert not (workspace / "out").exists()


@pytest.mark.parametrize(
    ("command", "setting", "message"),
    [
        ("rollout", "reward.name=maths", "reward.name: reward 'maths' is unknown; use 'math' or your own"),
        ("sft-repair", "reward.name=no_such_module:f", "reward.name: reward 'no_such_module:f': No module named"),
        ("rl-repair", "reward.name=stages.recipe:absent", "has no function 'absent'"),
        ("build-masks", "reward.name=stages.recipe:RECIPES", "has no function 'RECIPES'"),
        ("evaluate", "reward.name=no_such_module:f", "install it or put its folder on PYTHONPATH"),
        ("train-policy", "train.objective.overlong_buffer=73", "more than rollout.max_new_tokens (72); lower it"),
        ("rl-repair", "repair_rl.objective.overlong_buffer=73", "more than rollout.max_new_tokens (72); lower it"),
        ("rl-repair", "prompt.reference_instruction=Right", "prompt.reference_instruction is 'Right': String should"),
    ],
)
def test_a_dry_run_refuses_what_a_run_could_not_do(command, setting, message, workspace, df):
    before = listing(workspace)
    code, out, err = df(f"{command} {OPTIONS[command]} --out out --dry-run --set {setting}")

    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert listing(workspace) == before


@pytest.mark.usefixtures("workspace")
def test_rl_repair_needs_no_repair_set(df):
    options = OPTIONS["rl-repair"].replace("--repair-set repair_set.parquet", "")
    code, out, err = df(f"rl-repair {options} --out out --dry-run")

    assert (code, err) == (0, "")
    assert json.loads(out)["inputs"].keys() == {"problems", "policy", "repair_model"}


def test_an_output_folder_of_something_else_is_refused(workspace, df):
    (workspace / "out").mkdir()
    (workspace / "out" / "notes.txt").touch()
    for flag in ("", "--overwrite"):
        code, _, err = df(f"rollout {OPTIONS['rollout']} --out out {flag}")
        assert code == 1
        assert err == "error: out: not an empty folder and not made by df; name another with --out\n"

    assert listing(workspace / "out") == ["notes.txt"]


def test_a_run_that_is_not_there_is_named(workspace, df):
    code, out, err = df("summarize --rounds 1", str(workspace / "gone"))

    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert "no manifest.json" in line


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "rollout.temprature=1"], "no field rollout.temprature; the nearest is rollout.temperature"),
        (["--set", "rollout.temperature=99"], "rollout.temperature is 99: Input should be less than or equal to 10"),
        (["--set", "prompt.instruction={"], "'{' is not YAML: "),
        (["--recipe", "digit"], "digit: no such recipe file; shipped recipes: "),
    ],
)
def test_a_bad_recipe_is_told_before_anything_is_loaded(extra, message, workspace):
    before = listing(workspace)
    done = forked.df("rollout", *OPTIONS["rollout"].split(), "--out", "out", *extra, cwd=workspace)

    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(f"error: {' '.join(extra) if extra[0] == '--set' else extra[1]}: ")
    assert message in line
    assert listing(workspace) == before


def test_a_process_exits_with_1_and_no_traceback(workspace):
    done = forked.df("rollout", *OPTIONS["rollout"].split(), "--policy", "gone", "--out", "out", cwd=workspace)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: gone: no such model folder; ")
    assert len(done.stderr.splitlines()) == 1


def test_sigusr1_before_there_is_anything_to_save_ends_nothing():
    early = "main.app = lambda: os.kill(os.getpid(), signal.SIGUSR1)"
    code = f"import os, signal, sys; sys.path.insert(0, {str(ROOT)!r}); from df_cli import main; {early}; main.main()"
    assert subprocess.run([sys.executable, "-c", code, "rollout"], timeout=120, check=False).returncode == 0


READ = "repair-set read --sheet problems.parquet --annotated repair_set.parquet --policy model --recipe digits"


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(("line", "stage", "at_once"), [
    (READ, "stages.repair_set.ReadRepairSet", True),
    (f"rollout {OPTIONS['rollout']}", "stages.s3_rollout.Rollout", False),
])  # fmt: skip
def test_ctrl_c_acts_at_once_on_a_command_that_has_nowhere_to_stop(line, stage, at_once, df, monkeypatch):
    ran_on = []

    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)
        ran_on.append(True)

    monkeypatch.setattr(f"{stage}.plan", lambda self: Plan("test", {}, 0, self.inputs))
    monkeypatch.setattr(f"{stage}.run", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = df(f"{line} --out out")[0]
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code == 130, not ran_on) == (at_once, at_once)
