"""Problems that measure a policy and are trained on too are refused, before anything runs."""

import re

import pytest
from PIL import Image

from stages.artifacts.columns import PROBLEMS, REPAIR_SET
from stages.artifacts.problems import encode_image
from stages.artifacts.store import iterate_rows, write_rows
from stages.checks.unseen import check_unseen
from stages.errors import DataError, RecipeError
from stages.loop import Loop
from stages.recipe import load_recipe
from stages.study.ablation import Ablation

BLACK, WHITE = (encode_image(Image.new("RGB", (2, 2), colour)) for colour in ("black", "white"))


def row(name, question="How many?", images=(BLACK,), **more):
    return {"problem_id": name, "question": question, "images": list(images), "answer": "1", "kind": "sum", **more}


@pytest.fixture
def check(tmp_path):
    """A function: rows to measure with and rows to train on are checked."""

    def run(measuring, training, spec=PROBLEMS):
        write_rows(tmp_path / "test.parquet", PROBLEMS, measuring)
        write_rows(tmp_path / "train.parquet", spec, training)
        check_unseen(tmp_path / "train.parquet", tmp_path / "test.parquet", spec)

    return run


@pytest.mark.parametrize(
    "training",
    [
        row("a", question="How many now?"),
        row("a", images=[WHITE]),
        row("a", images=[BLACK, BLACK]),
        row("a", images=[], video=[BLACK], fps=1.0),
        row("a", images=[]),
    ],
)
def test_another_question_or_other_pictures_are_another_problem(check, training):
    check([row("a", images=[BLACK, WHITE]), row("b")], [training])


@pytest.mark.parametrize(
    "same",
    [row("x"), row("x", images=[]), row("x", images=[], video=[WHITE, BLACK], fps=2.0)],
    ids=["picture", "text alone", "video"],
)
def test_the_same_is_named_under_both_ids(check, same):
    with pytest.raises(
        DataError, match=r"test.parquet: 1 of its problems stand in .*train.parquet too: x \(there y\);"
    ):
        check([row("z", images=[WHITE]), same], [same | {"problem_id": "y", "question": " How  many?\n"}])


def test_a_repair_set_is_no_place_for_them_either(check):
    repairs = [row(name, q, error="2", repair="1") for name, q in (("r", "q"), ("s", "p"))]
    with pytest.raises(DataError, match=r"2 of its problems .* a \(there r\), b \(there s\)"):
        check([row("a", "q"), row("b", "p")], repairs, REPAIR_SET)


@pytest.fixture
def shared(digits, tmp_path):
    """Problems to train on, and one of them to measure with."""
    train, measuring = digits / "problems_train.parquet", tmp_path / "measuring.parquet"
    rows = list(iterate_rows(digits / "problems_test.parquet", PROBLEMS))[:3]
    write_rows(measuring, PROBLEMS, [*rows, next(iterate_rows(train, PROBLEMS)) | {"problem_id": "renamed"}])
    return train, measuring


REFUSED = "1 of its problems stand in .* renamed "


def test_a_loop_does_not_start_with_them(shared, base_dir, tmp_path):
    train, validation = shared
    recipe = load_recipe("digits", ["rollout.problems=2"])
    with pytest.raises(DataError, match=re.escape(str(validation)) + ": " + REFUSED):
        next(Loop(recipe, train, base_dir, base_dir, tmp_path / "run", 1, validation).run())
    assert not list((tmp_path / "run").glob("*/*"))


@pytest.mark.parametrize("place", ["test", "validation"])
def test_nor_does_a_study(shared, digits, base_dir, tmp_path, place):
    train, measuring = shared
    inputs = {"test": digits / "problems_test.parquet", "validation": None} | {place: measuring}
    study = Ablation("digits", ["rollout.problems=2"], train, base=base_dir, repair_set=None, out=tmp_path, **inputs)
    with pytest.raises(DataError, match=REFUSED):
        study.run()


def test_a_study_wants_a_repair_set_for_who_reads_one_alone(digits, base_dir, tmp_path):
    train, test = digits / "problems_train.parquet", digits / "problems_test.parquet"
    rivals = ["rollout.problems=2", "ablate.variants=rivals"]
    study = Ablation("digits", rivals, train, test, None, base_dir, tmp_path / "out", only=["grpo", "sft_then_grpo"])
    with pytest.raises(RecipeError, match="--variant sft_then_grpo: it reads annotated repairs; give --repair-set"):
        study.run()
