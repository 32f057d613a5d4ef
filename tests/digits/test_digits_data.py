"""The embedded example: what is committed is what the builder makes, and no handwriting is in two places."""

import io

import build
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from handwriting import CELL, POOLS, _cell, load_pools
from stages.artifacts.columns import PROBLEMS
from stages.core.alignment import edit_cost
from stages.scoring.answers import score_answer
from stages.training.heldout import with_end
from worked import QUESTIONS, Slips, gold_answer, no_slips, worked_answer

FILES = {"problems_train": 2000, "problems_test": 500, "repair_set": 1000}


def rows(digits, name):
    return pq.read_table(digits / f"{name}.parquet").to_pylist()


def cells(row) -> list[bytes]:
    strip = np.asarray(Image.open(io.BytesIO(row["images"][0]["bytes"])))
    return [strip[:, left : left + CELL].tobytes() for left in range(0, strip.shape[1], CELL)]


def pixels(row) -> list[tuple[tuple[int, int], bytes]]:
    """Size and pixels of every image: how a PNG is packed depends on the library that wrote it."""
    images = [Image.open(io.BytesIO(image["bytes"])) for image in row["images"]]
    return [(image.size, image.tobytes()) for image in images]


@pytest.mark.parametrize(("name", "least"), FILES.items())
def test_there_are_enough_problems_of_every_kind(digits, name, least):
    found = rows(digits, name)
    assert len(found) >= least
    assert {row["kind"] for row in found} == set(QUESTIONS)
    assert all(row["question"] == QUESTIONS[row["kind"]] for row in found)


def test_pools_share_no_scan():
    pools = load_pools(build.SEED)
    indices = [index for pool in pools.values() for part in pool.indices.values() for index in part.tolist()]
    assert len(indices) == len(set(indices)) == 1797


def test_every_digit_shown_comes_from_its_files_own_pool(digits):
    pools = load_pools(build.SEED)
    own = {
        name: {_cell(scan).tobytes() for scans in pool.scans.values() for scan in scans} for name, pool in pools.items()
    }
    repairs = rows(digits, "repair_set")
    shown = {
        "train": rows(digits, "problems_train"),
        "test": rows(digits, "problems_test"),
        "repair": repairs[:900],
        "heldout": repairs[900:],
    }
    for name, found in shown.items():
        assert {cell for row in found for cell in cells(row)} <= own[name]
        assert not any(own[name] & own[other] for other in POOLS if other != name)


def test_the_builder_makes_the_committed_problems_again(digits):
    rng = build.generators()["test"]
    made = build.make_problems("test", load_pools(build.SEED)["test"], build.TEST_PROBLEMS, rng)
    names = [column.name for column in PROBLEMS.columns if column.name != "images" and not column.optional]
    committed = rows(digits, "problems_test")
    assert [[row[name] for name in names] for row in made] == [[row[name] for name in names] for row in committed]
    assert [pixels(row) for row in made] == [pixels(row) for row in committed]


def test_repairs_are_right_and_errors_are_wrong(digits):
    for row in rows(digits, "repair_set"):
        assert score_answer(row["error"], row["answer"]) == 0
        assert score_answer(row["repair"], row["answer"]) == 1


def test_errors_are_local(digits, base_vlm):
    """What difference feedback is for: an error and its repair share most of their tokens."""
    costs = [
        edit_cost(with_end(base_vlm, row["error"]), with_end(base_vlm, row["repair"]))
        for row in rows(digits, "repair_set")
    ]
    assert min(costs) > 0
    assert np.mean(costs) < 0.15


@pytest.mark.parametrize("kind", QUESTIONS)
def test_worked_answers_lead_to_the_right_answer(kind):
    rng = np.random.default_rng(0)
    for _ in range(200):
        digits = rng.integers(0, 10, rng.integers(3, 5)).tolist()
        assert worked_answer(kind, digits, no_slips()).endswith(f"The answer is {gold_answer(kind, digits)}.")


def test_a_wrong_reading_stays_in_the_rest_of_the_answer():
    slips = Slips(reading=1.0, step=0.0, rng=np.random.default_rng(0))
    text = worked_answer("sum", [3, 1, 4], slips)
    assert text == "The digits are 8, 7, 9. 8 + 7 = 15. 15 + 9 = 24. The answer is 24."


def test_the_base_is_small_and_holds_safetensors_only(digits):
    files = list((digits / "base").iterdir())
    assert sum(file.stat().st_size for file in files) <= 6_000_000
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja"}
