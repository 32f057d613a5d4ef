"""A gain is told of two policies that were evaluated alike."""

import pytest

from stages.artifacts.columns import SCORES
from stages.errors import ArtifactError
from stages.summary import check_alike
from written_run import write_problems, write_step

JUDGE = {"name": "judge", "threshold": 1.0, "judge": {"model": "tiny"}}
ROWS = [
    {"problem_id": "row-0000000", "kind": None, "mode": mode, "draw": 0, "text": "", "reward": 1.0}
    for mode in ("greedy", "sampled")
]


@pytest.fixture
def evaluated(tmp_path):
    """A function: the folder of an evaluation on so many problems, and with these sections of the recipe."""

    def make(name, problems, **recipe):
        file = write_problems(tmp_path / f"{problems}.parquet", problems)
        write_step(tmp_path / name, "evaluate", {}, {SCORES: ROWS}, inputs={"problems": file}, recipe=recipe)
        return tmp_path / name

    return make


def test_evaluations_that_differ_in_the_policy_alone_are_compared(evaluated, tmp_path):
    rules = {"name": "math", "threshold": 1.0}
    base = evaluated("base", 3, evaluate={"draws": 2}, engine={"rows_per_batch": 64}, reward=rules)
    (tmp_path / "3.parquet").rename(tmp_path / "moved.parquet")
    unasked = {**JUDGE, **rules}
    check_alike(base, evaluated("final", 3, evaluate={"draws": 2}, engine={"rows_per_batch": 8}, reward=unasked))


@pytest.mark.parametrize(
    ("problems", "changed", "told"),
    [
        (4, {}, r"inputs\.problems"),
        (3, {"reward": {"threshold": 0.5}}, r"recipe\.reward\.threshold"),
        (3, {"reward": {**JUDGE, "judge": {"model": "large"}}}, r"recipe\.reward\.judge\.model"),
        (3, {"prompt": {"instruction": "Guess."}}, r"recipe\.prompt\.instruction"),
        (3, {"rollout": {"temperature": 1.0}}, r"recipe\.rollout\.temperature"),
    ],
)
def test_others_are_refused_by_what_differs(evaluated, problems, changed, told):
    """Both have a problem row-0000000, whatever is asked there."""
    judged = {"reward": JUDGE} if "judge" in changed.get("reward", {}) else {}
    base, final = evaluated("base", 3, **judged), evaluated("final", problems, **changed)
    with pytest.raises(ArtifactError, match=rf"final: evaluated with other {told} than .*base, .*run df evaluate"):
        check_alike(base, final)
