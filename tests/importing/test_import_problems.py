"""`df import-problems` from file to `problems`: what fits, what does not and why, and a run that was stopped."""

import json

import pytest
from datasets import Image, List, Value

import stages.import_problems as stage_module
from pictures import png
from stages.artifacts.columns import DROPPED, PROBLEMS
from stages.artifacts.problems import ProblemSet
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.errors import ArtifactError, DataError
from stages.import_problems import ImportProblems
from stages.importing.presets import Layout

LAYOUT = Layout(images=("image",), id="key", kind="level")


def lines(count):
    """Every third row has no answer, row 4 an image that is not there."""
    return [
        {
            "key": f"k{number}",
            "question": f"<image>What is {number}?",
            "image": "gone.png" if number == 4 else "a.png",
            "answer": "" if number % 3 == 2 else number,
            "level": "easy",
        }
        for number in range(count)
    ]


@pytest.fixture
def table(tmp_path):
    """A JSONL file with its picture beside it."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(5, 4)["bytes"])

    def write(rows):
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return str(folder / "data.jsonl")

    return write


def rows_of(out, spec):
    return list(iterate_rows(out, spec))


def test_problems_and_what_was_dropped(table, tmp_path):
    outcome = execute(ImportProblems(table(lines(7)), LAYOUT), tmp_path / "out")
    problems = ProblemSet(tmp_path / "out")

    assert list(problems.ids) == ["k0", "k1", "k3", "k6"]
    assert (problems["k3"].question, problems["k3"].answer, problems["k3"].kind) == ("What is 3?", "3", "easy")
    assert [image.size for image in problems["k3"].images] == [(5, 4)]
    assert rows_of(tmp_path / "out", DROPPED) == [
        {"problem_id": "k2", "reason": "answer_missing", "detail": None},
        {"problem_id": "k4", "reason": "image_not_found", "detail": None},
        {"problem_id": "k5", "reason": "answer_missing", "detail": None},
    ]
    manifest = outcome.manifest
    assert (manifest["rows_in"], manifest["rows_out"]) == (7, 4)
    assert manifest["dropped"] == {"answer_missing": 2, "image_not_found": 1}


def test_counts_of_images_and_of_answers_that_rules_cannot_score(parquet, tmp_path):
    rows = [
        {"images": [], "question": "a", "answer": "1"},
        {"images": [png(), png()], "question": "a", "answer": "1"},
        {"images": [png()], "question": "a", "answer": "x" * 1001},
    ]
    file = parquet(rows, {"images": List(Image()), "question": Value("string"), "answer": Value("string")})
    outcome = execute(ImportProblems(str(file), Layout()), tmp_path / "out")

    assert outcome.manifest["counts"] == {
        "without_images": 1,
        "several_images": 1,
        "answers_the_rules_cannot_score": 1,
    }
    assert list(ProblemSet(tmp_path / "out").ids) == ["row-0000000", "row-0000001", "row-0000002"]


def test_a_second_run_has_nothing_to_do_until_something_changes(table, tmp_path):
    file = table(lines(3))
    assert execute(ImportProblems(file, LAYOUT), tmp_path / "out").ran
    assert not execute(ImportProblems(file, LAYOUT), tmp_path / "out").ran
    for changed, name in (
        (ImportProblems(file, LAYOUT, limit=1), "limit"),
        (ImportProblems(file, Layout(images=("image",))), "layout"),
    ):
        with pytest.raises(ArtifactError, match=f"made with other .*{name}"):
            execute(changed, tmp_path / "out")
    table(lines(4))
    with pytest.raises(ArtifactError, match=r"made with other inputs\.source"):
        execute(ImportProblems(file, LAYOUT), tmp_path / "out")


def test_limit_reads_the_first_rows(table, tmp_path):
    outcome = execute(ImportProblems(table(lines(7)), LAYOUT, limit=3), tmp_path / "out")

    assert (outcome.manifest["rows_in"], list(ProblemSet(tmp_path / "out").ids)) == (3, ["k0", "k1"])


def test_a_stopped_run_goes_on_and_comes_to_the_same(table, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_module, "ROWS_PER_SHARD", 2)
    file = table(lines(7))
    whole = execute(ImportProblems(file, LAYOUT), tmp_path / "whole")
    real, written = stage_module._write, []

    def stopping(step, index, *rest):
        if index == 2 and not written:
            written.append(index)
            raise KeyboardInterrupt
        real(step, index, *rest)

    monkeypatch.setattr(stage_module, "_write", stopping)
    with pytest.raises(KeyboardInterrupt):
        execute(ImportProblems(file, LAYOUT), tmp_path / "out")
    before = (tmp_path / "out" / "problems-00000.parquet").stat().st_mtime_ns
    outcome = execute(ImportProblems(file, LAYOUT), tmp_path / "out")

    assert (tmp_path / "out" / "problems-00000.parquet").stat().st_mtime_ns == before
    assert len(list((tmp_path / "out").glob("problems-*.parquet"))) == 4
    for name in ("rows_in", "rows_out", "dropped", "counts", "files"):
        assert outcome.manifest[name] == whole.manifest[name]


def test_an_id_that_stands_twice_is_refused_across_shards(table, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_module, "ROWS_PER_SHARD", 2)
    rows = lines(4)
    rows[3]["key"] = "k0"
    with pytest.raises(DataError, match=r"row 3: id .k0. in column key stands twice"):
        execute(ImportProblems(table(rows), LAYOUT), tmp_path / "out")


def test_nothing_that_fits_is_an_error(table, tmp_path):
    rows = [row | {"answer": None} for row in lines(2)]
    with pytest.raises(DataError, match=r"no row of 2 fits: answer_missing 2"):
        execute(ImportProblems(table(rows), LAYOUT), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_imagefolder_and_its_change(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "metadata.csv").write_text("file_name,question,answer\na.png,Q,7\nb.png,R,8\n")
    (folder / "a.png").write_bytes(png(6, 5)["bytes"])
    (folder / "b.png").write_bytes(b"broken")
    stage = ImportProblems(str(folder), Layout(images=("image",)))
    outcome = execute(stage, tmp_path / "out")

    assert [image.size for image in ProblemSet(tmp_path / "out")["row-0000000"].images] == [(6, 5)]
    assert outcome.manifest["dropped"] == {"image_broken": 1}
    (folder / "b.png").write_bytes(png()["bytes"])
    with pytest.raises(ArtifactError, match=r"made with other recipe\.content"):
        execute(stage, tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"inside: lies in .*, which is read; name another with --out"):
        stage.check_output(folder / "inside")


def test_a_sample_says_what_was_understood_and_writes_nothing(table, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    file = table(lines(7))
    first, _, third = ImportProblems(file, LAYOUT).sample(3)

    assert (first.problem_id, first.question, first.images) == ("k0", "What is 0?", "5 x 4")
    assert (first.answer, first.read_as, first.kind) == ("0", "number 0", "easy")
    assert (third.problem_id, third.reason) == ("k2", "answer_missing")
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [tmp_path / "set" / "data.jsonl"]


@pytest.mark.parametrize(
    ("answer", "read_as"),
    [
        ("1/2", "number 1/2"),
        ("12 cm", "number 12 cm"),
        (r"\frac{\pi}{2}", r"\frac{\pi}{2}"),
        ("(B)", "(B)"),
        ("x" * 1001, "cannot be scored by rules"),
    ],
)
def test_how_an_answer_is_read(answer, read_as, table):
    (row,) = ImportProblems(table([lines(1)[0] | {"answer": answer}]), LAYOUT).sample(1)

    assert row.read_as == read_as


def test_the_schema_is_that_of_problems(table, tmp_path):
    execute(ImportProblems(table(lines(2)), LAYOUT), tmp_path / "out")

    assert list(rows_of(tmp_path / "out", PROBLEMS)[0]) == [column.name for column in PROBLEMS.columns]
