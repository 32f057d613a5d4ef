"""`df recipe`: which there are, what is in them, a copy to change."""

import json

import pytest
import yaml

from stages.artifacts.columns import METRICS
from stages.artifacts.origin import Origin
from stages.artifacts.plan import Plan
from stages.artifacts.step import Step
from stages.recipe import RECIPES, load_recipe


def test_the_shipped_recipes_are_listed_with_what_they_are(df):
    code, out, _ = df("recipe list")

    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines.keys() == {file.stem for file in RECIPES.glob("*.yaml")}
    assert "The embedded example: a tiny Qwen2.5-VL on strips of handwritten digits" in lines["digits"]


def test_every_value_is_shown_as_yaml_that_is_the_recipe(df, tmp_path):
    code, out, _ = df("recipe show digits --set train.gate=none")

    assert code == 0
    (tmp_path / "shown.yaml").write_text(out)
    assert load_recipe(tmp_path / "shown.yaml") == load_recipe("digits", ["train.gate=none"])


def test_a_steps_folder_shows_what_it_was_made_with(df, tmp_path):
    values = load_recipe("digits", ["rollout.temperature=0.3", "model.image_cache=cache"]).whole()
    origin = Origin("mine.yaml", [], json.dumps(values))
    step = Step.open(tmp_path / "step", Plan("rollout", {}, 0, {}, origin=origin.as_record()))
    step.write_shards(0, {METRICS: []})

    code, out, err = df(f"recipe show {tmp_path / 'step'}")
    assert (code, err, yaml.safe_load(out)) == (0, "", values)


def test_a_copy_is_the_file_and_replaces_nothing(df, tmp_path):
    mine = tmp_path / "mine.yaml"
    assert df(f"recipe copy internvl3.5-8b-grpo {mine}")[0] == 0
    assert mine.read_bytes() == (RECIPES / "internvl3.5-8b-grpo.yaml").read_bytes()

    code, _, err = df(f"recipe copy digits {mine}")
    assert (code, err) == (1, f"error: {mine}: cannot be written (File exists); name another file\n")
    assert mine.read_bytes() == (RECIPES / "internvl3.5-8b-grpo.yaml").read_bytes()


@pytest.mark.parametrize("line", ["show digit", "copy digit mine.yaml"])
def test_a_recipe_that_is_not_there_is_told_with_those_there_are(line, df):
    code, _, err = df(f"recipe {line}")
    assert code == 1
    assert err.startswith("error: digit: no such recipe file; shipped recipes: digits, ")
