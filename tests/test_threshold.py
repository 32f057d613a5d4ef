"""R ≥ τ is the same question before and after a reward was stored: float32 has 0.8999999762 for 0.9."""

import pyarrow.parquet as pq
import pytest

from stages.artifacts.columns import GROUPS, SCORES, SUMMARY
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.evaluate import Evaluate
from stages.recipe import load_recipe
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks

REWARD = """
from stages.reward.answers import score_answer


def scaled(response, problem):
    return 0.9 * score_answer(response, problem["answer"])
"""


@pytest.fixture
def scaled(digits, tmp_path, monkeypatch):
    """A recipe whose reward and threshold are 0.9, and twelve problems."""
    (tmp_path / "scaled_reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(tmp_path)
    pq.write_table(pq.read_table(digits / "problems_test.parquet").slice(0, 12), tmp_path / "problems.parquet")
    settings = ["rollout.problems=null", "rollout.samples_per_problem=4", "evaluate.draws=2", "masks.repairer=sibling"]
    return load_recipe("digits", [*settings, "reward.name=scaled_reward:scaled", "reward.threshold=0.9"])


def test_stages_call_the_same_responses_correct(scaled, base_dir, tmp_path):
    problems, rollouts = tmp_path / "problems.parquet", tmp_path / "rollouts"
    correct = execute(Rollout(scaled, problems, base_dir), rollouts).manifest["counts"]["correct"]
    assert 0 < correct < 48
    masks = execute(BuildMasks(scaled, rollouts, problems, None, base_dir), tmp_path / "groups").manifest
    assert [row["role"] for row in iterate_rows(tmp_path / "groups", GROUPS)].count("correct") == correct
    assert masks["counts"]["errors_repaired"] > 0


def test_an_evaluation_without_a_right_answer_names_the_field_to_look_at(digits, base_dir, tmp_path, caplog):
    pq.write_table(pq.read_table(digits / "problems_test.parquet").slice(0, 4), tmp_path / "problems.parquet")
    recipe = load_recipe("digits", ["rollout.max_new_tokens=4", "evaluate.draws=1"])
    execute(Evaluate(recipe, tmp_path / "problems.parquet", base_dir), tmp_path / "scores")
    assert "of 8, 8 were cut at the length limit" in caplog.text
    assert "raise rollout.max_new_tokens (4)" in caplog.text


def test_evaluation_counts_what_was_scored(scaled, base_dir, tmp_path):
    counts = execute(Evaluate(scaled, tmp_path / "problems.parquet", base_dir), tmp_path / "scores").manifest["counts"]
    every = [row for row in iterate_rows(tmp_path / "scores", SCORES) if row["mode"] != "image_removed"]
    assert (counts["responses"], counts["correct"]) == (36, sum(row["reward"] > 0.8 for row in every))
    rows = [row for row in every if row["mode"] == "greedy"]
    right = sum(row["reward"] > 0.8 for row in rows)
    assert right > 0
    summary = iterate_rows(tmp_path / "scores" / "summary.parquet", SUMMARY)
    assert {row["value"] for row in summary if row["measure"] == "greedy accuracy"} == {right / 12}
