"""Files and folders as streams of rows."""

import bz2
import gzip
import json
import lzma
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image, List, Value

from pictures import png
from stages.errors import DataError
from stages.importing.source import open_source


def rows(path, **options):
    return list(open_source(str(path), options.get("split"), None).rows())


def test_parquet_is_read_in_small_batches_and_images_stay_encoded(parquet):
    file = parquet([{"images": [png(5)], "n": n} for n in range(3)], {"images": List(Image()), "n": Value("int64")})
    source = open_source(str(file), None, None)

    assert source.columns == ("images", "n")
    assert source.folder == file.parent
    assert [row["n"] for row in source.rows()] == [0, 1, 2]
    assert [row["n"] for row in source.rows(limit=2)] == [0, 1]
    assert next(source.rows())["images"] == [png(5)]


def test_a_long_row_group_is_not_held_whole(tmp_path):
    noise = np.random.default_rng(0).bytes
    table = pa.table({"data": pa.array([noise(1_000) for _ in range(20_000)], pa.binary())})
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=20_000, use_dictionary=False)
    del table
    source = open_source(str(tmp_path / "data.parquet"), None, None)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in source.rows()]

    assert len(held) == 20_000
    assert max(held) < 8_000_000  # of 20,000,000


def test_jsonl_and_its_structs(tmp_path):
    lines = [{"q": "a", "m": {"task": None}, "o": ["x"]}, {"q": "b", "m": {"task": "t"}, "o": []}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))

    assert rows(tmp_path / "data.jsonl") == lines
    assert open_source(str(tmp_path / "data.jsonl"), None, None).columns == ("q", "m", "m.task", "o")


def test_a_column_of_mixed_types_keeps_its_values(tmp_path):
    lines = [{"answer": value} for value in ("B", 3, "", None, 2.5)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))

    assert rows(tmp_path / "data.jsonl") == lines


@pytest.mark.parametrize(("name", "comma"), [("data.csv", ","), ("data.tsv", "\t")])
def test_a_table_in_text_keeps_its_text(name, comma, tmp_path):
    lines = [["id", "answer"], ["007", "0.50"], ["8", "None"], ["9", ""], ["10", '"a, ""b"""']]
    (tmp_path / name).write_text("\ufeff" + "\n".join(comma.join(line) for line in lines), encoding="utf-8")

    assert rows(tmp_path / name) == [
        {"id": "007", "answer": "0.50"},
        {"id": "8", "answer": "None"},
        {"id": "9", "answer": ""},
        {"id": "10", "answer": 'a, "b"'},
    ]


def test_an_imagefolder_gives_paths_inside_it(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,question,answer\na.png,Q,7\n")
    (tmp_path / "a.png").write_bytes(png()["bytes"])
    (row,) = rows(tmp_path)

    assert row == {"image": {"bytes": None, "path": str(tmp_path / "a.png")}, "question": "Q", "answer": 7}


def test_a_folder_with_splits_asks_for_one(parquet, tmp_path):
    for split in ("train", "test"):
        parquet([{"n": split}], {"n": Value("string")}, f"{split}-00000.parquet")

    assert rows(tmp_path, split="test") == [{"n": "test"}]
    with pytest.raises(DataError, match="it has the splits train, test; choose one with --split"):
        rows(tmp_path)
    with pytest.raises(DataError, match="no split dev; it has train, test"):
        rows(tmp_path, split="dev")


def test_the_content_of_a_folder_tells_when_a_picture_changes(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,question\na.png,Q\n")
    (tmp_path / "a.png").write_bytes(png(colour="red")["bytes"])
    before = open_source(str(tmp_path), None, None).content
    assert open_source(str(tmp_path), None, None).content == before
    (tmp_path / "a.png").write_bytes(png(colour="blue")["bytes"])

    assert open_source(str(tmp_path), None, None).content != before


def test_columns_that_are_not_there_are_told_with_those_that_are(parquet):
    source = open_source(
        str(parquet([{"q": "a", "m": {"t": 1}}], {"q": Value("string"), "m": {"t": Value("int64")}})), None, None
    )
    source.check_columns(["q", "m.t"])
    with pytest.raises(DataError, match=r"no column text, m\.x; it has q, m, m\.t\. Name its columns"):
        source.check_columns(["text", "q", "m.x"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.parquet", None, "no such file or folder"),
        ("./gone", None, "no such file or folder"),
        ("a/b/c", None, "no such file or folder"),
        ("notes.txt", b"x", r"not one of \.parquet, \.jsonl, \.json, \.csv, \.tsv"),
        ("data.parquet", b"PAR1 no", "cannot be read as a dataset"),
        ("data.jsonl", b"{", "cannot be read as a dataset"),
        ("data.csv", b"a,a\n1,2\n", "two columns of one name"),
        ("data.csv", b"a,b\n", "no rows in it"),
    ],
)
def test_what_cannot_be_read_is_told(name, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(name, None, None)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("data.jsonl", 'null\n{"a": 1}\n', "line 1: null"),
        ("data.jsonl", '\n {"a": 1}\r\tnull\n', "line 3: null"),
        ("data.jsonl", '{"a": 1}\n7\n', "line 2: 7"),
        ("data.json", "\ufeffnull", "line 1: null"),
        ("data.json", '\ufeff[{"a": 1},\nnull]', "row 1: null"),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_a_null_for_a_row_is_told_where_the_reader_would_crash(name, content, place, folder, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path if folder else tmp_path / name), None, None)
    assert str(error.value) == f"{tmp_path / name} {place}, not an object of columns; take it out"


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_null_is_told_in_a_compressed_file_of_a_folder(suffix, pack, tmp_path):
    packed = tmp_path / f"data.jsonl.{suffix}"
    packed.write_bytes(pack(b'{"a": 1}\nnull\n'))
    with pytest.raises(DataError, match=rf"data\.jsonl::{packed} line 2: null, not an object"):
        open_source(str(tmp_path), None, None)

    packed.write_bytes(pack(b'{"a": 1}\n{"a": 2}\n'))
    assert [row["a"] for row in open_source(str(tmp_path), None, None).rows()] == [1, 2]


@pytest.mark.parametrize("name", ["data.jsonl", "metadata.jsonl"])
def test_a_null_is_told_in_a_zip_file_of_a_folder(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.png", png()["bytes"])
        archive.writestr(name, 'null\n{"file_name": "a.png"}\n')
    with pytest.raises(DataError, match=rf"{name}::.*/all\.zip line 1: null, not an object"):
        open_source(str(tmp_path), None, None)


def test_a_null_beside_the_pictures_of_a_folder_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(png()["bytes"])
    (tmp_path / "metadata.jsonl").write_text('null\n{"file_name": "a.png"}\n')
    with pytest.raises(DataError, match=r"metadata\.jsonl line 1: null, not an object"):
        open_source(str(tmp_path), None, None)


@pytest.mark.parametrize("between", ["", "\n"])
def test_nesting_that_the_reader_would_crash_on_is_told(between, tmp_path):
    (tmp_path / "data.jsonl").write_text(f'{{"a":{between}' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(DataError, match=r"data\.jsonl: cannot be read as a dataset \(RecursionError: "):
        open_source(str(tmp_path / "data.jsonl"), None, None)


@pytest.mark.parametrize("content", ['[\n{"a": 1},\n{"a": null}]', '{"a": 1}\n\n{"a": null}\n'])
def test_a_list_of_objects_reads_as_lines_do(content, tmp_path):
    (tmp_path / "data.json").write_text(content)
    assert rows(tmp_path / "data.json") == [{"a": 1}, {"a": None}]


def test_one_object_over_many_lines_is_a_row(tmp_path):
    (tmp_path / "data.json").write_text('{\n"a": [\n1,\nnull\n]\n}\n')
    assert rows(tmp_path / "data.json") == [{"a": [1, None]}]


def test_a_row_that_breaks_is_placed(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"a": 1}\n' * 3 + '{"a": [}\n')
    with pytest.raises(DataError, match=r"data\.jsonl.*cannot be read as a dataset"):
        rows(tmp_path / "data.jsonl")


def test_a_hub_name_without_a_hub(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="somebody/some-set: cannot be read as a dataset"):
        open_source("somebody/some-set", None, None)


@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("key", ["data_files", "data_dir"])
@pytest.mark.parametrize(
    "place",
    ["https://example.com/x.csv", "hf://datasets/a/b/x.csv", "zip://x.csv::y.zip", "../x.csv", "/etc/x.csv", "~/x.csv"],
)
def test_a_card_names_files_of_its_folder_alone(card, key, place, tmp_path):
    (tmp_path / "x.csv").write_text("question,answer\nof somebody else,1\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "own.csv").write_text("question,answer\nq,1\n")
    listed = place if key == "data_dir" else [{"split": "train", "path": ["own.csv", place]}]
    content = json.dumps({"configs": [{"config_name": "default", key: listed}]})  # JSON is YAML
    (folder / card).write_text(f"\n---\n{content}\n---\n" if card == "README.md" else content)
    with pytest.raises(DataError) as error:
        rows(folder)
    assert str(error.value).startswith(f"{folder / card}: names {place}, which does not lie in the folder; ")


def test_a_card_s_own_files_are_read(tmp_path):
    (tmp_path / "of..mine").mkdir()
    (tmp_path / "of..mine" / "a.csv").write_text("question,answer\nq,1\n")
    (tmp_path / "b.csv").write_text("other,columns\nq,1\n")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: c\n  data_files: of..mine/*.csv\n---\n")
    assert open_source(str(tmp_path), None, "c").columns == ("question", "answer")


def test_a_dataset_with_a_script_is_refused(tmp_path):
    (tmp_path / f"{tmp_path.name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match=r"cannot be read as a dataset .*scripts are no longer supported"):
        rows(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_missing_from_a_folder_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="data/mine: no such file or folder"):
        open_source("data/mine", None, None)
