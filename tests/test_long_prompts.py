"""Prompts that leave a model no room for a response are left out and counted by every stage, never cut."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from stages.artifacts.columns import DROPPED, EPISODES, GROUPS, REPAIRS, ROLLOUTS, SCORES
from stages.artifacts.problems import ProblemSet
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.engines.loading import open_engine
from stages.errors import DataError
from stages.evaluate import Evaluate
from stages.model.batches import encode_prompt
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.s2_rl_repair import RlRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks

SMALL = ["rollout.problems=24", "rollout.samples_per_problem=2", "evaluate.draws=1", "evaluate.image_removed=false"]
SMALL += ["repair_rl.problems=24", "repair_rl.drafts_per_problem=2", "repair_rl.iterations=1", "repair_rl.c1_tries=1"]
SMALL += ["repair_rl.errors_per_iteration=8", "repair_rl.repairs_per_error=2", "repair_rl.text_only_tries=1"]
RECIPE = load_recipe("digits", [*SMALL, "masks.candidates=1", "masks.on_no_correct=repair"])
ROOM = RECIPE.rollout.max_new_tokens


@pytest.fixture(scope="module")
def with_length(base_dir, tmp_path_factory):
    """A function: the base policy with another `max_position_embeddings`."""

    def make(length):
        folder = shutil.copytree(base_dir, tmp_path_factory.mktemp("model") / "base")
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["max_position_embeddings"] = length
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture(scope="module")
def train(digits, tmp_path_factory):
    return first_of(digits / "problems_train.parquet", 100, tmp_path_factory.mktemp("train"))


def first_of(file, count, folder):
    """A file of that name with so many of its rows."""
    pq.write_table(pq.read_table(file).slice(0, count), folder / file.name)
    return folder / file.name


@pytest.fixture(scope="module")
def lengths(base_dir, train):
    """Tokens of the prompt of each problem."""
    codec = open_engine(base_dir, RECIPE).codec
    problems = ProblemSet(train)
    return {
        problem.problem_id: len(encode_prompt(codec, policy_prompt(codec.processor, RECIPE.prompt, problem)).ids)
        for problem in problems.many(problems.ids)
    }


@pytest.fixture(scope="module")
def rollouts(base_dir, train, tmp_path_factory):
    out = tmp_path_factory.mktemp("rollout") / "out"
    execute(Rollout(RECIPE, train, base_dir), out)
    return out


def problems_of(out, spec):
    return {row["problem_id"] for row in iterate_rows(out, spec)}


def test_rollout_leaves_out_the_longest(with_length, train, rollouts, lengths, tmp_path):
    manifest = execute(Rollout(RECIPE, train, with_length(21 + ROOM)), tmp_path / "out").manifest
    drawn = problems_of(rollouts, ROLLOUTS)
    fitting = {name for name in drawn if lengths[name] <= 21}
    assert problems_of(tmp_path / "out", ROLLOUTS) == fitting != drawn
    assert problems_of(tmp_path / "out" / "dropped.parquet", DROPPED) == drawn - fitting
    assert manifest["rows_in"] == 24
    assert manifest["dropped"] == {"prompt_too_long": 24 - len(fitting)}
    assert manifest["rows_out"] == 2 * len(fitting) > 0


def test_a_rollout_of_nothing_is_an_error(with_length, train, tmp_path):
    with pytest.raises(
        DataError, match=r"problems_train\.parquet: no rows left; every prompt and .* \(72\) are more than"
    ):
        execute(Rollout(RECIPE, train, with_length(ROOM)), tmp_path / "out")


def test_evaluate_leaves_them_out_of_every_mode(with_length, digits, tmp_path):
    test = first_of(digits / "problems_test.parquet", 60, tmp_path)
    manifest = execute(Evaluate(RECIPE, test, with_length(20 + ROOM)), tmp_path / "out").manifest
    count = len(ProblemSet(test))
    scored = problems_of(tmp_path / "out", SCORES)
    assert 0 < len(scored) < count
    assert manifest["dropped"]["prompt_too_long"] == 2 * (count - len(scored))


def test_an_error_whose_repair_prompt_is_too_long_stays_without_a_repair(
    with_length, train, rollouts, base_dir, tmp_path
):
    """A repair prompt holds the draft too, so that none fits where the policy's prompts all do."""
    model = with_length(40 + ROOM)
    manifest = execute(BuildMasks(RECIPE, rollouts, train, model, base_dir), tmp_path / "out").manifest
    counts = manifest["counts"]
    assert counts["errors_with_prompt_too_long"] == counts["errors_without_repair"] == counts["repair_triggered"] > 0
    assert list(iterate_rows(tmp_path / "out", REPAIRS)) == []
    assert {row["role"] for row in iterate_rows(tmp_path / "out", GROUPS)} == {"correct", "error"}


def test_a_continuation_that_does_not_fit_leaves_the_verdict_open(with_length, train, rollouts, base_dir, tmp_path):
    policy = with_length(30 + ROOM)
    execute(BuildMasks(RECIPE, rollouts, train, base_dir, policy), tmp_path / "out")
    verdicts = {(row["reward"], row["flagged"]) for row in iterate_rows(tmp_path / "out", REPAIRS)}
    assert (1.0, None) in verdicts
    assert not {(1.0, False)} & verdicts


def test_repair_rl_finds_no_error_in_a_problem_that_does_not_fit(with_length, train, lengths, base_dir, tmp_path):
    manifest = execute(RlRepair(RECIPE, train, with_length(21 + ROOM), base_dir), tmp_path / "out").manifest
    assert 0 < manifest["dropped"]["prompt_too_long"] < 24
    assert all(
        lengths[row["problem_id"]] <= 21 for row in iterate_rows(tmp_path / "out" / "episodes.parquet", EPISODES)
    )


def test_repair_rl_goes_on_without_errors_whose_repair_prompt_does_not_fit(
    with_length, train, digits, base_dir, tmp_path
):
    repair_set = first_of(digits / "repair_set.parquet", 20, tmp_path)
    stage = RlRepair(RECIPE, train, base_dir, with_length(40 + ROOM), repair_set)
    manifest = execute(stage, tmp_path / "out").manifest
    assert manifest["counts"]["held_out_prompt_too_long"] == 2
    assert manifest["dropped"]["repair_prompt_too_long"] == 8
    assert manifest["rows_out"] == 0
