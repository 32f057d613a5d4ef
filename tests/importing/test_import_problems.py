"""`df import-problems` from file to `problems`: what fits, what does not and why, and a run that was stopped."""

import json
from dataclasses import replace

import pytest
from datasets import Image, List, Value

import stages.import_problems as stage_module
from pictures import png
from stages.artifacts.columns import DROPPED, PROBLEMS
from stages.artifacts.integrity import check_input
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
        {
            "problem_id": "k4",
            "reason": "image_not_found",
            "detail": f"gone.png (from {tmp_path / 'set'}): no such file; put it there, or drop the row",
        },
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


def test_a_file_that_none_of_the_rows_has_is_named(table):
    rows = [row | {"image": "lost/b.png"} for row in lines(1)]
    told = r"no row of 1 fits: image_not_found 1 \(the first: lost/b\.png \(from .*set\): no such file; put it there"
    with pytest.raises(DataError, match=told):
        ImportProblems(table(rows), LAYOUT).plan()


def test_a_folder_of_images_needs_no_name_for_its_column(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(5, 4)["bytes"])
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "question": "How many?", "answer": "3"}))
    execute(ImportProblems(str(folder), Layout()), tmp_path / "out")

    (problem,) = ProblemSet(tmp_path / "out")
    assert (problem.question, problem.answer, [image.size for image in problem.images]) == ("How many?", "3", [(5, 4)])


def with_images(parquet, of_rows):
    """Problems whose images are told by their colours."""
    rows = [
        {"images": [png(3, 2, colour) for colour in colours], "question": f"q{row}", "answer": "1"}
        for row, colours in enumerate(of_rows)
    ]
    return str(parquet(rows, {"images": List(Image()), "question": Value("string"), "answer": Value("string")}))


def sides(out):
    """Ids and images of both."""
    found = []
    for side in ("problems_train", "problems_test"):
        problems = ProblemSet(out / side)
        found.append((set(problems.ids), {image["bytes"] for problem in problems for image in problem.images.encoded}))
    return found


def test_a_split_keeps_problems_with_a_common_image_together(parquet, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_module, "ROWS_PER_SHARD", 7)
    colours = [f"#{number:06x}" for number in range(0, 30 * 5000, 5000)]
    of_rows = [[colours[row % 20], *([colours[20 + row % 10]] if row % 7 == 0 else [])] for row in range(60)]
    outcome = execute(ImportProblems(with_images(parquet, of_rows), Layout(), split_test=0.25), tmp_path / "mine")
    (train, train_images), (test, test_images) = sides(tmp_path / "mine")

    assert train | test == {f"row-{row:07d}" for row in range(60)}
    assert not train & test
    assert not train_images & test_images
    assert 6 <= len(test) <= 15
    assert outcome.manifest["counts"]["test_problems"] == len(test)
    check_input(tmp_path / "mine" / "problems_test")
    assert not execute(ImportProblems(with_images(parquet, of_rows), Layout(), split_test=0.25), tmp_path / "mine").ran


def test_a_damaged_side_of_a_split_is_named(parquet, tmp_path):
    execute(ImportProblems(with_images(parquet, [["red"], ["blue"]]), Layout(), split_test=0.5), tmp_path / "mine")
    shard = tmp_path / "mine" / "problems_train" / "problems-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=rf"^{shard}: \d+ bytes instead of "):
        check_input(tmp_path / "mine" / "problems_train")
    with pytest.raises(DataError, match=r"mine: no problems-\*\.parquet in this folder, but in .*test and .*train; "):
        ProblemSet(tmp_path / "mine")


def test_a_split_does_not_depend_on_the_order_of_rows(parquet, tmp_path):
    colours = [[f"#{number:06x}"] for number in range(0, 40 * 5000, 5000)]
    for name, of_rows in (("first", colours), ("second", colours[::-1])):
        execute(ImportProblems(with_images(parquet, of_rows), Layout(), split_test=0.1), tmp_path / name)
    (_, first), (_, second) = sides(tmp_path / "first")[1], sides(tmp_path / "second")[1]
    assert first == second
    assert len(first) == 4


def test_a_split_that_no_group_is_small_enough_for_is_refused_and_leaves_nothing_in_the_way(parquet, tmp_path):
    file = with_images(parquet, [["red"]] * 5 + [["blue"]] * 4)
    with pytest.raises(DataError, match=r"--split-test 0\.1 leaves no problem to test on.*; raise it"):
        execute(ImportProblems(file, Layout(), split_test=0.1), tmp_path / "mine")

    assert execute(ImportProblems(file, Layout(), split_test=0.5), tmp_path / "mine").ran
    assert [len(ids) for ids, _ in sides(tmp_path / "mine")] == [5, 4]


def test_ids_that_stand_twice_leave_nothing_in_the_way(table, tmp_path):
    file = table([*lines(2), *lines(1)])
    with pytest.raises(DataError, match="stands twice"):
        execute(ImportProblems(file, LAYOUT), tmp_path / "out")
    assert execute(ImportProblems(file, replace(LAYOUT, id=None)), tmp_path / "out").ran


def test_a_split_is_not_made_in_one_of_its_own_sides(table, tmp_path):
    with pytest.raises(ArtifactError, match=f"in the folder; give {tmp_path}$"):
        ImportProblems(table(lines(2)), LAYOUT, split_test=0.5).check_output(tmp_path / "problems_train")
