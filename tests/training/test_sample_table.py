"""The table of samples, on a pair whose marked tokens are chosen by hand."""

from dataclasses import replace

import pytest
from PIL import Image

from stages.artifacts.columns import GROUPS
from stages.artifacts.problems import Problem
from stages.artifacts.store import write_rows
from stages.engines.loading import open_codec
from stages.training.sample_table import sample_table

RED, BLUE = Image.new("RGB", (600, 80), "red"), Image.new("L", (40, 60), 255)


@pytest.fixture(scope="module")
def codec(base_dir, recipe):
    return open_codec(base_dir, recipe)


def row(codec, words, marked, role, reward):
    """One group row; `words` are tokenized one by one, those in `marked` have the mask."""
    tokens = [(token, word in marked) for word in words for token in codec.tokenizer.encode(word)]
    return {
        "problem_id": "p",
        "sample": 0,
        "role": role,
        "in_pair": role != "correct",
        "ids": [token for token, _ in tokens],
        "reward": reward,
        "mask": [is_marked for _, is_marked in tokens],
        "old_logprobs": [-1.0] * len(tokens),
        "finish_reason": "stop",
    }


@pytest.fixture
def groups(codec, tmp_path):
    """Rollouts of one problem: a right one, which is in no pair, and an error with its repair."""
    rows = [
        row(codec, ["The digits are", " 5"], [], "correct", 1.0),
        row(codec, ["The digits are", " 3", " 4"], [" 3"], "error", 0.0),
        row(codec, ["The digits are", " 7", " 4"], [" 7"], "repair", 1.0),
    ]
    write_rows(tmp_path / f"{GROUPS.name}-00000.parquet", GROUPS, rows)
    return tmp_path


def test_a_pair_has_a_row_with_its_marks_pictures_and_rewards(groups, codec):
    problem = replace(Problem.asking("Which\x1b[2J digits?", [RED, BLUE]), problem_id="p", answer="7 4")
    (found,) = sample_table(groups, {"p": problem}, codec)
    sheet = found.pop("pictures")
    decoded = codec.tokenizer.decode
    before, wrong, right, behind = (decoded(codec.tokenizer.encode(t)) for t in ("The digits are", " 3", " 7", " 4"))
    assert found == {
        "problem": "p",
        "question": "Which\\x1b[2J digits?",
        "answer": "7 4",
        "error": f"{before}[-{wrong}-]{behind}",
        "repair": f"{before}{{+{right}+}}{behind}",
        "error reward": 0.0,
        "repair reward": 1.0,
    }
    # 600 × 80 in at most 480 × 320 is 480 × 64.
    assert sheet.size == (480 + 40, 64)
    assert [sheet.getpixel(at) for at in ((0, 0), (479, 63), (480, 59), (480, 60))] == [
        (255, 0, 0), (255, 0, 0), (255, 255, 255), (0, 0, 0),
    ]  # fmt: skip


def test_a_problem_without_pictures_has_none(groups, codec):
    problem = replace(Problem.asking("Which digits?", []), problem_id="p")
    (found,) = sample_table(groups, {"p": problem}, codec)
    assert found["pictures"] is None
