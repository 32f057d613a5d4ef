"""The same seed writes the same bytes."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from ahead import AheadModels
from stages.artifacts.stage import execute
from stages.evaluate import Evaluate
from stages.recipe import load_recipe
from stages.runtime.interruption import Requests, Stopped
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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", [Rollout, Evaluate])
def test_an_engine_that_takes_shards_ahead_changes_nothing(tmp_path, digits, base_dir, command, monkeypatch):
    """Nor does a stop while later shards are under way."""
    monkeypatch.setattr("stages.evaluate.PROBLEMS_AT_ONCE", 10)
    settings = ["rollout.problems=15", "rollout.samples_per_problem=4", "rollout.rows_per_shard=20", "evaluate.draws=1"]
    problems = tmp_path / "problems.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, 24), problems)
    stage = command(load_recipe("digits", settings), problems, base_dir)
    expected = execute(stage, tmp_path / "plain").manifest
    ahead = replace(stage, models=AheadModels())
    with pytest.raises(Stopped):
        execute(ahead, tmp_path / "ahead", requests=Requests(stop_after_s=0))
    found = execute(ahead, tmp_path / "ahead").manifest
    assert len(found["files"]) > 2
    for told in ("rows_in", "rows_out", "dropped", "counts", "files"):
        assert found[told] == expected[told]
