"""`df import-problems` as it is typed."""

import io
import json
from functools import partial

import pytest
from PIL import Image

from stages.artifacts.problems import ProblemSet


@pytest.fixture
def df(typed):
    """`typed`, of the command's arguments."""
    return partial(typed, "import-problems")


@pytest.fixture
def table(tmp_path):
    """A CSV file of questions with choices, and their picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (17, 5)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    lines = [
        "number,text,picture,options,right,second",
        '1,[bold]How[/bold] \x1b[31mmany?,a.png,"[""3"", ""4""]",4,a.png',
        '2,Which?,../b.png,"[""3"", ""4""]",A,a.png',
    ]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data.csv"


COLUMNS = ["--question", "text", "--images", "picture", "--answer", "right"]


def test_a_sample_shows_markup_and_control_characters_as_text_and_writes_nothing(df, table, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, err = df(table, *COLUMNS, "--choices", "options", "--sample", 5)

    assert (code, err) == (0, "")
    assert "[bold]How[/bold]" in out
    assert "\x1b" not in out
    assert "17 x 5" in out
    assert "does not fit: image_outside_folder" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_an_import_counts_what_did_not_fit(df, table, tmp_path):
    code, out, _ = df(table, *COLUMNS, "--choices", "options", "--out", tmp_path / "out")
    problems = ProblemSet(tmp_path / "out")

    assert code == 0
    assert "dropped: image_outside_folder" in out
    assert [(problem.problem_id, problem.answer, problem.kind) for problem in problems] == [("row-0000000", "B", None)]


def test_each_option_does_something(df, table, tmp_path):
    options = ["--images", "second", "--id", "number", "--kind", "right", "--answer-form", "text", "--limit", 1]
    df(table, *COLUMNS, "--choices", "options", *options, "--out", tmp_path / "out")
    (problem,) = ProblemSet(tmp_path / "out")

    assert (problem.problem_id, problem.kind, problem.answer, len(problem.images)) == ("1", "4", "B", 2)


def test_an_option_goes_before_the_preset(df, table):
    preset = ["--preset", "mmstar", *COLUMNS, "--kind", "number"]
    code, _, err = df(table, *preset, "--sample", 1)
    assert (code, "no column index; it has number, text, picture" in err) == (1, True)
    code, out, _ = df(table, *preset, "--id", "", "--sample", 1)

    assert code == 0
    assert "row-0000000" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--sample", "1"],
            "data.csv: no column question, images, answer; it has number, text, picture, options, right",
        ),
        (["--preset", "coco", "--sample", "1"], "--preset coco: not one of geometry3k, mmpr-tiny, mathvista"),
        ([*COLUMNS, "--split", "test", "--sample", "1"], "no split test; it has train"),
    ],
)
def test_what_a_user_is_told(arguments, message, df, table):
    code, out, err = df(table, *arguments)

    assert (code, out) == (1, "")
    assert message in err


@pytest.mark.parametrize("more", [[], ["--sample", "1", "--out", "out"]])
def test_it_is_a_sample_or_an_import(more, df, table):
    code, _, err = df(table, *COLUMNS, *more)

    assert code == 2
    assert "give --out to import, or --sample to look first" in err


def test_a_dry_run_prints_the_plan(df, table, tmp_path):
    code, out, _ = df(table, *COLUMNS, "--out", tmp_path / "out", "--dry-run")

    assert code == 0
    assert json.loads(out)["recipe"]["layout"]["question"] == "text"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", ["0", "1", "1.5", "-0.1"])
def test_a_split_takes_a_share(share, table, df, tmp_path):
    code, _, err = df(table, *COLUMNS, "--split-test", share, "--out", tmp_path / "out")
    assert (code, "is no share between 0 and 1" in err) == (2, True)
    assert not (tmp_path / "out").exists()
