"""What `make soak` runs, small."""

import copy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "soak"))

from load import ONE_PROBLEM_A_SHARD, compare, measure_judge, measure_nodes, measure_size, slower, twice

from one_stage import OF_SHARDS, STAGES

PROBLEMS = 40


@pytest.fixture(scope="module")
def took(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ":".join(sys.path))
        return measure_size(tmp_path_factory.mktemp("soak") / "run", PROBLEMS)


@pytest.mark.slow
def test_every_problem_is_answered_repaired_and_trained_on(took):
    assert [took[stage]["rows_out"] for stage in STAGES] == [2 * PROBLEMS, 3 * PROBLEMS, PROBLEMS]
    assert took["rollout"]["counts"]["correct"] == PROBLEMS
    assert took["build-masks"]["counts"]["errors_repaired"] == PROBLEMS
    assert 0 < took["build-masks"]["counts"]["tokens_marked"] < took["build-masks"]["counts"]["tokens_in_pairs"] / 4
    assert all(took[stage]["most_files"] >= 3 for stage in STAGES)


@pytest.mark.slow
def test_what_grows_is_named(took):
    assert compare([PROBLEMS, 10 * PROBLEMS], took, took) == []
    grown = copy.deepcopy(took)
    grown["rollout"]["peak_rss_mib"] *= 1.21
    grown["train-policy"]["most_files"] += 9
    memory, files = compare([PROBLEMS, 10 * PROBLEMS], took, grown)
    assert memory == "rollout: peak memory grows by 1.210, more than 1.2"
    assert files.startswith("train-policy: ")


@pytest.mark.slow
def test_a_shard_is_written_for_each_that_is_read(took, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    of_shards = measure_size(tmp_path / "run", PROBLEMS, OF_SHARDS, ONE_PROBLEM_A_SHARD)
    written = {stage: len(list((tmp_path / "run" / stage).glob("*-*.parquet"))) for stage in OF_SHARDS}
    assert written == {"rollout": PROBLEMS, "build-masks": 2 * PROBLEMS, "realign": PROBLEMS}
    assert of_shards["rollout"]["counts"] == took["rollout"]["counts"]
    assert of_shards["build-masks"]["counts"] == took["build-masks"]["counts"]
    marked = took["build-masks"]["counts"]["tokens_marked"]
    assert of_shards["realign"]["counts"]["tokens_marked"] == marked


@pytest.mark.slow
def test_two_nodes_go_on_where_one_was_killed_and_do_nothing_twice(took, tmp_path):
    of_nodes = measure_nodes(tmp_path / "run", PROBLEMS)
    assert {stage: of.rows_out for stage, of in of_nodes.items()} == {
        stage: took[stage]["rows_out"] for stage in of_nodes
    }
    assert all(of.finished >= PROBLEMS // 4 for of in of_nodes.values())
    assert twice(PROBLEMS, of_nodes) == []
    again = {"rollout": of_nodes["rollout"]._replace(written_again=1)}
    assert twice(PROBLEMS, again) == ["rollout: 1 files were written twice"]


def test_a_shard_that_takes_longer_among_many_is_named():
    few, many = ({"rollout": {"cpu_seconds": seconds}} for seconds in (2.0, 30.0))
    assert slower([100, 1_000], few, many) == []
    many["rollout"]["cpu_seconds"] = 31.0
    assert slower([100, 1_000], few, many) == ["rollout: 20.0 ms a shard among 100, 31.0 among 1,000"]


def test_the_judge_is_asked_as_much_at_once_as_it_may_be(tmp_path):
    found = measure_judge(tmp_path, problems=16, limit=4, answer_s=0.1, spread_s=0.0, generate_s=0.1)

    for occupancy in found.values():
        assert occupancy.most == 4
        assert 0 < occupancy.share <= 1
        assert occupancy.seconds > occupancy.bound_s == pytest.approx(0.8)
