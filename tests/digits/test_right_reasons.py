"""Which answers of a study of worded digits are right from end to end."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from data.strips.worked import no_slips
from data.worded_digits.worked import in_some_words, worked_pieces
from right_reasons import right_runs
from right_repairs import shown
from stages.artifacts.columns import CURVES, SCORES
from stages.artifacts.store import write_rows
from stages.errors import DataError
from stages.study.curves import Point, Run, rows_of, values_of


@pytest.fixture(scope="module")
def strips():
    return shown("test")


def evaluation(folder, answers):
    """Each problem's greedy answer, and the same twice sampled: a text and whether its number is right."""
    folder.mkdir(parents=True)
    rows = [
        {"problem_id": problem, "kind": None, "mode": mode, "draw": draw, "text": text, "reward": reward}
        for problem, (text, reward) in answers.items()
        for mode, draws in (("greedy", 1), ("sampled", 2))
        for draw in range(draws)
    ]
    write_rows(folder / "scores-00000.parquet", SCORES, rows)
    return values_of(folder, 1.0)


def test_a_right_number_behind_a_wrong_reading_does_not_count(strips, tmp_path):
    """An odd digit that is read as another odd one leaves the count of even digits as it is."""
    rng = np.random.default_rng(0)
    first, second = [name for name, strip in strips.items() if strip["kind"] == "even" and 1 in strip["digits"]][:2]

    def answer(name, one):
        seen = [one if digit == 1 else digit for digit in strips[name]["digits"]]
        return in_some_words(worked_pieces("even", seen, no_slips()), rng)

    assert answer(first, 1).rpartition("answer is")[2] == answer(first, 7).rpartition("answer is")[2]
    before = evaluation(tmp_path / "steps/evaluate-a", {first: (answer(first, 7), 1.0), second: ("", 0.0)})
    after = {first: (answer(first, 1), 1.0), second: (answer(second, 7), 1.0)}
    points = [Point(0, 0.0, 0, before), Point(1, 9.0, 8, evaluation(tmp_path / "steps/evaluate-b", after))]
    runs = [Run("ours", 0, problems, key=problems, points=points) for problems in ("test", "validation")]
    write_rows(tmp_path / "curves.parquet", CURVES, rows_of(runs))
    (run,) = right_runs(tmp_path, strips)
    for mode in ("greedy", "sampled"):
        found = [point.values[f"{mode} answers right from end to end"].tolist() for point in run.points]
        assert found == [[0.0, 0.0], [1.0, 0.0]]
        assert [point.values[mode].tolist() for point in run.points] == [[1.0, 0.0], [1.0, 1.0]]
    (tmp_path / "steps/evaluate-a").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="the evaluation of round 0 of a run is not there any more"):
        list(right_runs(tmp_path, strips))
