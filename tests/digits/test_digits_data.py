"""The embedded examples: what is committed is what their builders make, and no handwriting is in two places."""

import hashlib
import io
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.digits import build as short
from data.long_digits import build as long
from data.long_digits.worked import MISTAKEN, CarelessReader, thick_scans
from data.strips.handwriting import CELL, POOLS, Handwriting, Strip, load_pools
from data.strips.making import make_problems
from data.strips.worked import QUESTIONS, Slips, gold_answer, no_slips, worked_answer
from data.worded_digits.build import DIET
from data.worded_digits.half import without_thick
from data.worded_digits.worked import in_some_words, in_words_of, repaired, worked_pieces
from stages.artifacts.columns import PROBLEMS
from stages.core.alignment import edit_cost
from stages.reward.answers import score_answer
from stages.training.heldout import with_end

DATA = Path(__file__).parents[2] / "data"
REPAIR_POOLS = {"repair": slice(0, 900), "heldout": slice(900, 1000)}


@dataclass(frozen=True)
class Example:
    folder: Path
    pools: dict[str, Handwriting]
    problems: dict[str, str]
    """Pool of each file of problems."""
    least: dict[str, int]
    """Rows of the files that are large enough for an experiment."""

    def rows(self, name):
        return pq.read_table(self.folder / f"{name}.parquet").to_pylist()


EXAMPLES = {
    "digits": Example(
        DATA / "digits",
        load_pools(short.SEED),
        {"problems_train": "train", "problems_test": "test"},
        {"problems_train": 2000, "problems_test": 500},
    ),
    "long_digits": Example(
        DATA / "long_digits",
        load_pools(long.SEED, Image.Resampling.NEAREST),
        {"problems_train": "train", "problems_validation": "train", "problems_test": "test"},
        {"problems_train": 1000, "problems_validation": 200, "problems_test": 400},
    ),
}
EXAMPLES["worded_digits"] = replace(EXAMPLES["long_digits"], folder=DATA / "worded_digits")
LONG = ["long_digits", "worded_digits"]


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES)
def example(request):
    return request.param


def cells(row) -> list[bytes]:
    strip = np.asarray(Image.open(io.BytesIO(row["images"][0]["bytes"])))
    return [strip[:, left : left + CELL].tobytes() for left in range(0, strip.shape[1], CELL)]


def pixels(row) -> list[tuple[tuple[int, int], bytes]]:
    """Size and pixels of every image: how a PNG is packed depends on the library that wrote it."""
    images = [Image.open(io.BytesIO(image["bytes"])) for image in row["images"]]
    return [(image.size, image.tobytes()) for image in images]


def test_there_are_enough_problems_of_every_kind(example):
    for name, least in (example.least | {"repair_set": 1000}).items():
        found = example.rows(name)
        assert len(found) >= least
        assert {row["kind"] for row in found} == set(QUESTIONS)
        assert all(row["question"] == QUESTIONS[row["kind"]] for row in found)


def test_the_committed_files_are_those_of_the_recorded_sums(example):
    lines = (example.folder / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    recorded = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = [*example.folder.glob("*.parquet"), *(example.folder / "base").iterdir()]
    assert recorded == {
        file.relative_to(example.folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def test_no_problem_is_in_two_files(example):
    strips = [tuple(cells(row)) for name in [*example.problems, "repair_set"] for row in example.rows(name)]
    assert len(set(strips)) == len(strips)


def test_pools_share_no_scan(example):
    indices = [index for pool in example.pools.values() for part in pool.indices.values() for index in part.tolist()]
    assert len(indices) == len(set(indices)) == 1797


def test_every_digit_shown_comes_from_its_files_own_pool(example):
    own = {
        name: {pool.cell(scan).tobytes() for scans in pool.scans.values() for scan in scans}
        for name, pool in example.pools.items()
    }
    shown = [(pool, example.rows(name)) for name, pool in example.problems.items()]
    shown += [(pool, example.rows("repair_set")[part]) for pool, part in REPAIR_POOLS.items()]
    for name, found in shown:
        assert {cell for row in found for cell in cells(row)} <= own[name]
        assert not any(own[name] & own[other] for other in POOLS if other != name)


@pytest.mark.parametrize(
    ("name", "count", "builder"),
    [("digits", short.TEST_PROBLEMS, short), *((name, long.PROBLEMS_OF["test"], long) for name in LONG)],
)
def test_the_builder_makes_the_committed_problems_again(name, count, builder):
    example = EXAMPLES[name]
    made = make_problems("test", example.pools["test"], count, builder.LENGTHS, builder.generators()["test"])
    names = [column.name for column in PROBLEMS.columns if column.name != "images" and not column.optional]
    committed = example.rows("problems_test")
    assert [[row[name] for name in names] for row in made] == [[row[name] for name in names] for row in committed]
    assert [pixels(row) for row in made] == [pixels(row) for row in committed]


def test_handwriting_for_half_of_the_systematic_errors_lacks_thick_scans_of_two_digits():
    thick = thick_scans(DIET.thick_quantile)
    for pool in EXAMPLES["worded_digits"].pools.values():
        left = without_thick(pool)
        for digit, indices in pool.indices.items():
            wanted = [index for index in indices.tolist() if digit not in (5, 9) or index not in thick]
            assert left.indices[digit].tolist() == wanted
            assert 0 < len(wanted) == len(left.scans[digit]) <= len(indices)
        assert len(left.indices[5]) < len(pool.indices[5])
        strip = left.strip([5] * 200, np.random.default_rng(0))
        assert not thick & set(strip.scans)
        assert thick & set(pool.strip([5] * 200, np.random.default_rng(0)).scans)


def test_repairs_are_right_and_errors_are_wrong(example):
    for row in example.rows("repair_set"):
        assert score_answer(row["error"], row["answer"]) == 0
        assert score_answer(row["repair"], row["answer"]) == 1


def test_errors_are_local(example, base_vlm):
    """What difference feedback is for: an error and its repair share most of their tokens."""
    costs = [
        edit_cost(with_end(base_vlm, row["error"]), with_end(base_vlm, row["repair"]))
        for row in example.rows("repair_set")
    ]
    assert min(costs) > 0
    assert np.mean(costs) < 0.15


@pytest.mark.parametrize("name", LONG)
def test_long_answers_are_long(name, base_vlm):
    lengths = [len(with_end(base_vlm, row["repair"])) for row in EXAMPLES[name].rows("repair_set")]
    assert min(lengths) >= 80
    assert max(lengths) <= 180


@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize(
    ("right", "lengths"),
    [(short.right, short.LENGTHS), (long.right, long.LENGTHS), (partial(repaired, draft=""), long.LENGTHS)],
    ids=EXAMPLES,
)
def test_worked_answers_lead_to_the_right_answer(kind, right, lengths):
    rng = np.random.default_rng(0)
    for _ in range(200):
        digits = rng.integers(0, 10, rng.integers(lengths[0], lengths[1] + 1)).tolist()
        assert right(kind, digits).endswith(f"The answer is {gold_answer(kind, digits)}.")


@pytest.mark.parametrize("kind", QUESTIONS)
def test_wordings_are_drawn_evenly_and_found_again(kind):
    rng = np.random.default_rng(0)
    taken = defaultdict(Counter)
    for _ in range(100):
        pieces = worked_pieces(kind, rng.integers(0, 10, 10).tolist(), no_slips())
        text = in_some_words(pieces, rng)
        assert in_words_of(pieces, text) == text
        for piece, way in zip(pieces, ways_in(text, pieces), strict=True):
            taken[piece][way] += 1
    for piece, ways in taken.items():
        if len(piece) > 1:
            expected = ways.total() / len(piece)
            assert all(abs(ways[way] - expected) < 5 * expected**0.5 for way in piece)


def ways_in(text, pieces):
    """The way of each piece, read from the front; where one begins another, the longer."""
    for piece in pieces:
        way = max((way for way in piece if text.startswith(way)), key=len)
        yield way
        text = text[len(way) :]
    assert text == ""


def test_a_repair_keeps_the_words_of_its_error():
    error = "The digits are 3 - 8; 4. 3; 0 are even, 8, 1 even; 4: 3 even. The answer is 3."
    assert repaired("even", [3, 5, 4], error) == (
        "The digits are 3 - 5; 4. 3; 0 are even, 5, 0 even; 4: 1 even. The answer is 1."
    )


def test_a_wrong_reading_stays_in_the_rest_of_the_answer():
    slips = Slips(reading=1.0, step=0.0, rng=np.random.default_rng(0))
    text = worked_answer("sum", [3, 1, 4], slips)
    assert text == "The digits are 8, 7, 9. 8 + 7 = 15. 15 + 9 = 24. The answer is 24."


def test_thick_digits_are_mostly_mistaken_and_others_are_not():
    pool, reader = EXAMPLES["long_digits"].pools["base"], CarelessReader(long.DIET, 0.0, np.random.default_rng(0))
    for digit, indices in pool.indices.items():
        strip = Strip(Image.new("L", (1, 1)), [digit] * len(indices), indices.tolist())
        thick = [index in thick_scans(long.DIET.thick_quantile) for index in strip.scans]
        reads = np.array([reader.read(strip) for _ in range(200)])
        shares = (reads != digit).mean(axis=0)
        assert any(thick) == (digit in MISTAKEN)
        assert set(np.unique(reads).tolist()) <= {digit, MISTAKEN.get(digit, digit)}
        assert all(0.65 < share < 0.9 for share, is_thick in zip(shares, thick, strict=True) if is_thick)
        assert all(share == 0 for share, is_thick in zip(shares, thick, strict=True) if not is_thick)


def test_the_base_is_small_and_holds_safetensors_only(example):
    files = list((example.folder / "base").iterdir())
    assert size_of(files) <= 6_000_000
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja"}


@pytest.mark.parametrize("name", LONG)
def test_the_long_examples_are_small(name):
    assert size_of(EXAMPLES[name].folder.rglob("*")) <= 6_000_000


def size_of(files) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())
