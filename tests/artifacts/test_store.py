"""Parquet files: whole or absent, read back as written, refused by name where they are something else."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts.columns import DROPPED, METRICS, ROLLOUTS
from stages.artifacts.store import ROWS_PER_GROUP, count_rows, iterate_rows, parquet_files, write_rows
from stages.errors import DataError

ROLLOUT = {
    "problem_id": "p",
    "sample": 0,
    "ids": [5, 6],
    "sampler_logprobs": [-0.5, -0.25],
    "finish_reason": "stop",
    "reward": None,
    "text": "ŷ = 7",
}


def metrics(count):
    return [{"step": step, "metric": "loss", "value": step / 2} for step in range(count)]


def test_rows_come_back_as_written(tmp_path):
    rows = [ROLLOUT, ROLLOUT | {"ids": [], "sampler_logprobs": [], "reward": 1.0}]
    write_rows(tmp_path / "rollouts.parquet", ROLLOUTS, rows)

    assert list(iterate_rows(tmp_path / "rollouts.parquet", ROLLOUTS)) == rows


def test_a_file_has_row_groups_and_they_come_back_in_order(tmp_path):
    count = 2 * ROWS_PER_GROUP + 1
    write_rows(tmp_path / "metrics.parquet", METRICS, metrics(count))

    assert pq.ParquetFile(tmp_path / "metrics.parquet").num_row_groups == 3
    assert list(iterate_rows(tmp_path / "metrics.parquet", METRICS)) == metrics(count)
    assert count_rows(tmp_path / "metrics.parquet", METRICS) == count


def test_shards_are_read_in_order_and_others_left_alone(tmp_path):
    for index in (10, 2, 1):
        write_rows(tmp_path / f"metrics-{index:05d}.parquet", METRICS, [{"step": index, "metric": "m", "value": 0}])
    write_rows(tmp_path / "dropped-00000.parquet", DROPPED, [{"problem_id": "p", "reason": "r"}])

    assert [row["step"] for row in iterate_rows(tmp_path, METRICS)] == [1, 2, 10]
    assert count_rows(tmp_path, METRICS) == 3


def test_only_the_specs_columns_are_read(tmp_path):
    table = pa.Table.from_pylist(metrics(1), schema=METRICS.schema()).append_column("note", pa.array(["mine"]))
    pq.write_table(table, tmp_path / "metrics.parquet")

    assert list(iterate_rows(tmp_path / "metrics.parquet", METRICS)) == metrics(1)


def test_a_refused_write_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="row 1: metric is null"):
        write_rows(tmp_path / "metrics-00000.parquet", METRICS, [*metrics(1), {"step": 1, "value": 0.0}])

    assert not list(tmp_path.iterdir())


def test_a_write_stopped_before_its_rename_is_not_read(tmp_path):
    file = tmp_path / "metrics-00000.parquet"
    (tmp_path / (file.name + ".partial")).mkdir()  # the writer cannot get past opening its partial file
    with pytest.raises(OSError, match="partial"):
        write_rows(file, METRICS, metrics(3))

    assert not file.exists()
    with pytest.raises(DataError, match=r"no metrics-\*\.parquet in this folder"):
        parquet_files(tmp_path, METRICS)


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path):
    file = tmp_path / "metrics.parquet"
    write_rows(file, METRICS, metrics(2))
    with pytest.raises(DataError):
        write_rows(file, METRICS, [{"step": None, "metric": "m", "value": 0.0}])

    assert list(iterate_rows(file, METRICS)) == metrics(2)


def test_missing_file_is_named_with_its_producer(tmp_path):
    with pytest.raises(DataError, match=r"gone\.parquet: no such file or folder; rollouts is written by df rollout"):
        parquet_files(tmp_path / "gone.parquet", ROLLOUTS)


@pytest.mark.parametrize("content", [b"", b"PAR1 but cut off", b"problem_id,reason\n"])
def test_what_is_not_parquet_is_named(content, tmp_path):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet: not a readable Parquet file .*; write it again"):
        parquet_files(tmp_path / "x.parquet", DROPPED)


def test_a_cut_file_is_not_parquet(tmp_path):
    file = tmp_path / "metrics.parquet"
    write_rows(file, METRICS, metrics(50))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        count_rows(file, METRICS)


def test_other_columns_are_refused_before_any_row_is_read(tmp_path):
    write_rows(tmp_path / "metrics-00000.parquet", METRICS, metrics(1))
    write_rows(tmp_path / "metrics-00001.parquet", DROPPED, [{"problem_id": "p", "reason": "r"}])
    with pytest.raises(DataError, match=r"metrics-00001\.parquet: no column step"):
        next(iterate_rows(tmp_path, METRICS))


def test_a_null_is_placed_by_its_row_in_the_file(tmp_path):
    row = ROWS_PER_GROUP + 3
    rows = metrics(ROWS_PER_GROUP * 2)
    rows[row]["metric"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=METRICS.schema()), tmp_path / "metrics.parquet")
    with pytest.raises(DataError, match=rf"metrics\.parquet row {row}: metric is null"):
        list(iterate_rows(tmp_path / "metrics.parquet", METRICS))
