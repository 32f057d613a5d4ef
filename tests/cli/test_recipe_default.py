"""Without --recipe a command takes the one that its folders were made with, and says which."""

import json

import pytest
from workspace import GROUP, INPUTS, ROLLOUT

from stages.artifacts.columns import GROUPS, ROLLOUTS
from stages.artifacts.origin import Origin
from stages.artifacts.plan import Plan
from stages.artifacts.step import Step
from stages.recipe import RECIPES, load_recipe

ALL = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))


def write_step(folder, spec, row, recipe="digits", assignments=()):
    """A finished step, made with a recipe."""
    values = json.dumps(load_recipe(recipe, assignments).whole())
    origin = Origin(recipe, list(assignments), values).as_record()
    step = Step.open(folder, Plan("earlier", {}, 0, {}, origin=origin))
    step.write_shards(0, {spec: [row]})
    step.finish()


@pytest.mark.parametrize("command", INPUTS)
def test_no_recipe_is_taken_in_silence(command, workspace, df):
    code, out, err = df(f"{command} {INPUTS[command]} --out out")
    told = f"error: no --recipe, and no folder given here was made with one; give a file, or one of {ALL}\n"
    assert (code, out, err) == (1, "", told)
    assert not (workspace / "out").exists()


def test_an_ablation_wants_a_recipe_too(workspace, df):
    line = "ablate --train problems.parquet --test problems.parquet --repair-set repair_set.parquet --base model"
    code, _, err = df(f"{line} --out out")
    assert (code, err) == (1, f"error: no --recipe; give a file, or one of {ALL}\n")
    assert not (workspace / "out").exists()


@pytest.mark.parametrize("place", ["earlier", "earlier/groups-00000.parquet"])
def test_the_recipe_of_an_input_is_taken_and_changed(place, workspace, df):
    write_step(workspace / "earlier", GROUPS, GROUP, assignments=["train.gate=none"])
    line = f"train-policy --groups {place} --problems problems.parquet --policy model --out out --dry-run"
    plan = json.loads(df(f"{line} --set rollout.temperature=0.4")[1])

    assert plan["recipe"]["train"]["gate"] == "none"
    assert plan["recipe"]["rollout"]["temperature"] == 0.4
    assert (plan["origin"]["name"], plan["origin"]["assignments"]) == (
        "digits",
        ["train.gate=none", "rollout.temperature=0.4"],
    )
    assert json.loads(df(f"{line} --recipe internvl3.5-8b-grpo")[1])["recipe"]["model"]["dtype"] == "bfloat16"


def test_recipes_that_differ_are_told(workspace, df):
    write_step(workspace / "one", ROLLOUTS, ROLLOUT)
    write_step(workspace / "two", ROLLOUTS, ROLLOUT, assignments=["rollout.temperature=1"])
    line = "build-masks --rollouts one --problems problems.parquet --repair-model two --policy model --out out"
    code, _, err = df(line)
    told = "the folders were made with different ones (one: digits; two: digits, rollout.temperature=1)"
    assert code == 1
    assert told in err


@pytest.mark.usefixtures("workspace")
def test_a_stopped_step_goes_on_with_its_own_recipe_and_tables_name_it(df):
    settings = "--set rollout.problems=1 --set rollout.samples_per_problem=1 --set rollout.max_new_tokens=2"
    line = "rollout --problems problems.parquet --policy model --out out"
    code, table, _ = df(f"{line} --recipe digits {settings}")
    assert code == 0
    told = "digits, rollout.problems=1, rollout.samples_per_problem=1, rollout.max_new_tokens=2"
    assert told in " ".join(table.replace("│", " ").split())

    assert df(line)[1] == "out: complete and up to date, nothing to do\n"
    assert "made with other recipe.rollout." in df(f"{line} --recipe digits")[2]
    assert df(f"{line} --recipe digits --overwrite-changed --dry-run")[0] == 0


def test_what_changed_is_overwritten_where_that_is_asked_for_and_nothing_else(workspace, df):
    settings = "--recipe digits --set rollout.problems=1 --set rollout.max_new_tokens=2"
    line = f"rollout --problems problems.parquet --policy model --out out {settings} --set rollout.samples_per_problem="
    manifest = workspace / "out" / "manifest.json"
    df(f"{line}1")
    made = manifest.stat().st_mtime_ns

    assert "nothing to do" in df(f"{line}1 --overwrite-changed")[1]
    assert manifest.stat().st_mtime_ns == made
    code, _, err = df(f"{line}2")
    assert code == 1
    assert "made with other recipe.rollout.samples_per_problem; give --overwrite" in err
    assert manifest.stat().st_mtime_ns == made
    assert "rows out" in df(f"{line}2 --overwrite-changed")[1]
    assert json.loads(manifest.read_text())["rows_out"] == 2

    shard = workspace / "out" / "rollouts-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "bytes instead of" in df(f"{line}2")[2]
    assert "rows out" in df(f"{line}2 --overwrite-changed")[1]


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("command", ["sft-repair", "evaluate"])
def test_the_policy_has_one_name_and_the_old_one_still_works(command, df):
    line = f"{command} {INPUTS[command].replace('--model', '{}')} --recipe digits --out out --dry-run"
    plans = [json.loads(df(line.format(name))[1]) for name in ("--policy", "--model")]
    assert plans[0] == plans[1]
    assert plans[0]["inputs"]["model"]["path"] == "model"
