"""The same seed writes the same bytes."""

import pytest

from stages.artifacts.stage import execute
from stages.recipe import load_recipe
from stages.s3_rollout import Rollout


@pytest.mark.timeout(300)
def test_the_same_seed_samples_the_same_bytes(tmp_path, digits, base_dir):
    def files(out, seed):
        settings = ["rollout.problems=10", "rollout.samples_per_problem=4", "rollout.rows_per_shard=20", f"seed={seed}"]
        stage = Rollout(load_recipe("digits", settings), digits / "problems_train.parquet", base_dir)
        return execute(stage, tmp_path / out).manifest["files"]

    first = files("a", 1)
    assert first.keys() == {"rollouts-00000.parquet", "rollouts-00001.parquet"}
    assert files("b", 1) == first
    other = files("c", 2)
    assert all(other[name]["sha256"] != first[name]["sha256"] for name in first)
