"""Parquet files: whole or absent, read back as written, refused by name where they are something else."""

from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.artifacts import store
from stages.artifacts.columns import DROPPED, METRICS, ROLLOUTS
from stages.artifacts.store import (
    ROWS_PER_GROUP,
    check_parquet,
    count_rows,
    iterate_rows,
    iterate_tables,
    parquet_files,
    read_tables,
    write_rows,
    write_tables,
)
from stages.errors import ArtifactError, DataError

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


@pytest.mark.parametrize("cut", [1, 100, ROWS_PER_GROUP, 3 * ROWS_PER_GROUP])
def test_a_file_does_not_depend_on_how_its_rows_came(cut, tmp_path):
    rows = metrics(2 * ROWS_PER_GROUP + 1)
    write_rows(tmp_path / "rows.parquet", METRICS, rows)
    tables = (pa.Table.from_pylist(rows[k : k + cut], schema=METRICS.schema()) for k in range(0, len(rows), cut))

    assert write_tables(tmp_path / "tables.parquet", METRICS, tables) == len(rows)
    assert (tmp_path / "tables.parquet").read_bytes() == (tmp_path / "rows.parquet").read_bytes()


def test_tables_are_written_as_they_come(tmp_path):
    """The file grows while the tables are made, under another name."""
    sizes = []

    def tables():
        for number in range(4):
            partial = [file.stat().st_size for file in tmp_path.iterdir() if file.name != "metrics.parquet"]
            sizes.append(partial)
            rows = [{"step": number, "metric": "m", "value": float(k * k)} for k in range(ROWS_PER_GROUP)]
            yield pa.Table.from_pylist(rows, schema=METRICS.schema())
        assert not (tmp_path / "metrics.parquet").exists()

    write_tables(tmp_path / "metrics.parquet", METRICS, tables())

    assert sizes == sorted(sizes)
    assert len({size for (size,) in sizes}) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.parquet"]


def test_tables_come_back_as_written_a_row_group_at_a_time(tmp_path):
    rows = metrics(2 * ROWS_PER_GROUP + 1)
    write_rows(tmp_path / "metrics.parquet", METRICS, rows)
    tables = list(iterate_tables(tmp_path / "metrics.parquet", METRICS))

    assert [len(table) for table in tables] == [ROWS_PER_GROUP, ROWS_PER_GROUP, 1]
    assert pa.concat_tables(tables).to_pylist() == rows


def test_a_file_is_checked_whole_once_and_again_when_its_bytes_are_others(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(store, "read_tables", lambda file, *of: looked.append(file) or read_tables(file, *of))
    file = tmp_path / "metrics.parquet"
    for count in (37, 37, 38, 37):
        write_rows(file, METRICS, metrics(count))
        check_parquet(file)
    assert len(looked) == 2
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        check_parquet(file)


def test_reading_holds_a_few_row_groups_however_long_the_file(tmp_path):
    values = np.random.default_rng(0).random(40 * ROWS_PER_GROUP * 64, np.float32)
    logprobs = pa.FixedSizeListArray.from_arrays(values, 64).cast(pa.list_(pa.float32()))
    rows = len(logprobs)
    columns = {"problem_id": ["p"] * rows, "sample": [0] * rows, "ids": [[]] * rows, "sampler_logprobs": logprobs}
    columns |= {"finish_reason": ["stop"] * rows, "reward": [None] * rows, "text": [""] * rows}
    write_tables(tmp_path / "rollouts.parquet", ROLLOUTS, [pa.table(columns, schema=ROLLOUTS.schema())])
    del values, logprobs, columns
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in iterate_tables(tmp_path / "rollouts.parquet", ROLLOUTS)]

    assert len(held) == 40
    assert max(held) < 10 * ROWS_PER_GROUP * 64 * 4


def test_token_lists_are_written_plain_and_repeated_words_as_a_dictionary(tmp_path):
    write_rows(tmp_path / "rollouts.parquet", ROLLOUTS, [ROLLOUT, ROLLOUT])
    group = pq.ParquetFile(tmp_path / "rollouts.parquet").metadata.row_group(0)
    columns = {group.column(k).path_in_schema: group.column(k) for k in range(group.num_columns)}

    assert columns["problem_id"].has_dictionary_page
    assert not columns["ids.list.element"].has_dictionary_page
    assert not columns["sampler_logprobs.list.element"].has_dictionary_page


def test_shards_are_read_in_order_and_others_left_alone(tmp_path):
    for index in (100_000, 10, 2, 1):
        write_rows(tmp_path / f"metrics-{index:05d}.parquet", METRICS, [{"step": index, "metric": "m", "value": 0}])
    write_rows(tmp_path / "dropped-00000.parquet", DROPPED, [{"problem_id": "p", "reason": "r"}])

    assert [row["step"] for row in iterate_rows(tmp_path, METRICS)] == [1, 2, 10, 100_000]
    assert count_rows(tmp_path, METRICS) == 4


def test_only_the_specs_columns_are_read(tmp_path):
    table = pa.Table.from_pylist(metrics(1), schema=METRICS.schema()).append_column("note", pa.array(["mine"]))
    pq.write_table(table, tmp_path / "metrics.parquet")

    assert list(iterate_rows(tmp_path / "metrics.parquet", METRICS)) == metrics(1)


def test_a_refused_write_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="row 1: metric is null"):
        write_rows(tmp_path / "metrics-00000.parquet", METRICS, [*metrics(1), {"step": 1, "value": 0.0}])

    assert not list(tmp_path.iterdir())


def test_a_refused_table_is_placed_by_its_row_in_the_file_and_leaves_nothing(tmp_path):
    good = pa.Table.from_pylist(metrics(ROWS_PER_GROUP + 4), schema=METRICS.schema())
    bad = pa.Table.from_pylist([{"step": 1, "value": 0.0}], schema=METRICS.schema())
    with pytest.raises(DataError, match=rf"row {ROWS_PER_GROUP + 4}: metric is null"):
        write_tables(tmp_path / "metrics-00000.parquet", METRICS, [good, bad])

    assert not list(tmp_path.iterdir())


def test_a_write_stopped_before_its_rename_is_not_read(tmp_path):
    file = tmp_path / "metrics-00000.parquet"
    (tmp_path / (file.name + ".partial")).mkdir()  # the writer cannot get past opening its partial file
    with pytest.raises(ArtifactError, match=r"metrics-00000\.parquet: cannot be written \(Is a directory\)"):
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


def flips(file, every):
    """Copies of the file's bytes with one bit turned over, all over the file: magic, page headers, pages, footer."""
    content = file.read_bytes()
    for k in range(0, len(content), every):
        flipped = bytearray(content)
        flipped[k] ^= 1 << (k // every) % 8
        yield k, bytes(flipped)


def test_no_flipped_bit_changes_a_row_unseen(tmp_path):
    rows = [
        ROLLOUT
        | {"sample": k, "ids": [k] * (k % 5), "sampler_logprobs": [-k / 4] * (k % 5), "reward": [1.0, None][k % 2]}
        for k in range(20)
    ]
    file = tmp_path / "rollouts.parquet"
    write_rows(file, ROLLOUTS, rows)
    footer = file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[-8:-4], "little")
    refused = {"pages": 0, "footer": 0}
    for place, content in flips(file, every=5):
        flipped = tmp_path / "flipped.parquet"
        flipped.write_bytes(content)
        try:
            found = list(iterate_rows(flipped, ROLLOUTS))
        except DataError:
            refused["pages" if place < footer else "footer"] += 1
        else:
            assert found == rows, f"byte {place}"
    assert min(refused.values()) > 100


def test_every_flipped_bit_in_a_page_is_refused(tmp_path):
    file = tmp_path / "metrics.parquet"
    write_rows(file, METRICS, metrics(200))
    column = pq.ParquetFile(file).metadata.row_group(0).column(2)
    content = bytearray(file.read_bytes())
    end = column.dictionary_page_offset + column.total_compressed_size
    for k in range(end - 60, end):
        content[k] ^= 16
        file.write_bytes(content)
        content[k] ^= 16
        with pytest.raises(DataError, match=r"metrics\.parquet: not a readable Parquet file \(.*CRC.*; write it again"):
            list(iterate_rows(file, METRICS))


def test_a_page_that_says_it_holds_less_is_refused(tmp_path):
    """No checksum is over a page's header."""
    file = tmp_path / "rollouts.parquet"
    write_rows(file, ROLLOUTS, [ROLLOUT | {"ids": [1, 2, 3], "sampler_logprobs": [-1.0] * 3}] * 2)
    column = pq.ParquetFile(file).metadata.row_group(0).column(2)
    assert column.path_in_schema == "ids.list.element"
    content, found = file.read_bytes(), set()
    for k, bit in product(range(column.data_page_offset, column.data_page_offset + 24), range(8)):
        file.write_bytes(content[:k] + bytes([content[k] ^ 1 << bit]) + content[k + 1 :])
        try:
            list(iterate_rows(file, ROLLOUTS))
        except DataError as error:
            found.add(str(error).partition("(")[2].partition(")")[0])
    assert {"4 values of ids, its footer says 6", "0 rows, its footer says 2"} <= found


def test_a_footer_that_contradicts_itself_is_refused(tmp_path):
    file = tmp_path / "metrics.parquet"
    write_rows(file, METRICS, metrics(20))
    content = file.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    found = set()
    for k in range(footer, len(content)):
        file.write_bytes(content[:k] + bytes([content[k] ^ 8]) + content[k + 1 :])
        try:
            assert count_rows(file, METRICS) == 20
        except DataError as error:
            found.add(str(error).partition("(")[2].partition(")")[0])
    assert {
        "its footer says 20 rows, and 16 in its row groups",
        "its footer says 16 rows, and 20 in its row groups",
    } <= found
