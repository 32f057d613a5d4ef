"""A gain is told of two policies that were evaluated alike."""

from itertools import product

import numpy as np
import pytest

from stages.artifacts.columns import SCORES
from stages.errors import ArtifactError
from stages.summary import check_alike, compare, compare_by_kind, over_first, read_evaluation
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


def test_evaluations_are_compared_as_their_rows_say(tmp_path):
    """200 problems of two kinds with four draws; of the first evaluation ten problems are not scored."""
    rng = np.random.default_rng(0)
    correct_EMPK = rng.random((2, 2, 200, 4)) < np.array([0.4, 0.6])[:, None, None, None]
    scored_EP = np.ones((2, 200), bool)
    scored_EP[0, :10] = False
    modes = {"greedy": 1, "sampled": 4}
    for name, correct_MPK, scored_P in zip(("first", "other"), correct_EMPK, scored_EP, strict=True):
        rows = [
            {"problem_id": f"p{p}", "kind": ("even", "odd")[p % 2], "mode": mode, "draw": k, "text": "",
             "reward": float(correct_MPK[m, p, k]) if scored_P[p] else None}
            for m, (mode, draws) in enumerate(modes.items()) for p in range(200) for k in range(draws)
        ]  # fmt: skip
        write_step(tmp_path / name, "evaluate", {}, {SCORES: rows})

    policies = {name: read_evaluation(tmp_path / name) for name in ("first", "other")}
    pairs = over_first(policies)
    measured = [*compare(policies, pairs).measures(), *compare_by_kind(policies, pairs).measures()]
    found = {(m.section, m.measure): m for m in measured}
    kinds = {"": slice(None), ", even": slice(0, None, 2), ", odd": slice(1, None, 2)}
    for (m, (mode, draws)), (kind, of) in product(enumerate(modes.items()), kinds.items()):
        of_each_EP = correct_EMPK[:, m, of, :draws].mean(axis=-1)
        scored = scored_EP[0, of]
        section, measure = ", by kind" if kind else "", f"{mode} accuracy{kind}"
        assert found[f"first{section}", measure].value == pytest.approx(of_each_EP[0, scored].mean())
        assert found[f"other{section}", measure].value == pytest.approx(of_each_EP[1].mean())
        gain, gains = found[f"gain, other over first{section}", measure], (of_each_EP[1] - of_each_EP[0])[scored]
        assert (gain.value, gain.n) == (pytest.approx(gains.mean()), scored.sum())
        width = 2 * 1.96 * gains.std(ddof=1) / scored.sum() ** 0.5
        assert gain.high - gain.low == pytest.approx(width, rel=0.1)
        assert (gain.high + gain.low) / 2 == pytest.approx(gains.mean(), abs=width / 20)
