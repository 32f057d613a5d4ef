"""What runs and evaluations came to: numbers by hand, gains of policies that were evaluated alike."""

from itertools import product

import numpy as np
import pytest

from stages.artifacts.columns import SCORES, SUMMARY
from stages.artifacts.store import iterate_rows
from stages.errors import ArtifactError
from stages.summary import check_alike, compare, compare_by_kind, over_first, read_evaluation
from written_run import write_problems, write_run, write_scores, write_step

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


@pytest.fixture
def df(typed):
    """A function: the exit code, the table's rows and what was told of `df summarize` in a wide terminal."""

    def run(*arguments):
        code, out, err = typed("summarize", *arguments)
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
        return code, rows, out + err

    return run


def read_summary(run):
    return {(row["section"], row["measure"]): row["value"] for row in iterate_rows(run / "summary.parquet", SUMMARY)}


def test_the_command_compares_evaluations_and_writes_nothing(tmp_path, df):
    """One of four right, then three."""
    for name, right in (("base", 1), ("ours", 3)):
        write_scores(tmp_path / name, right)
    files = sorted(tmp_path.rglob("*"))
    code, rows, _ = df(tmp_path / "base", tmp_path / "ours")
    assert code == 0
    assert [row[:3] for row in rows if "greedy accuracy" in row] == [
        ["", "greedy accuracy", "0.250"], ["", "greedy accuracy", "0.750"], ["", "greedy accuracy", "0.500"],
    ]  # fmt: skip
    assert [row[0] for row in rows if row[0]] == ["base", "ours", "gain, ours over base"]
    assert sorted(tmp_path.rglob("*")) == files
    assert df(tmp_path / "base", "--rounds", 1)[2] == "error: --rounds is a run's; evaluations have none\n"


def test_several_runs_are_no_evaluations(tmp_path, df):
    run = write_run(tmp_path / "run")
    code, _, told = df(run, run / "evaluate-base")
    assert (code, told) == (1, "error: 2 folders: give evaluations alone, or one run; df report takes several\n")


def test_rounds_are_counted_up_to_the_last_evaluation(tmp_path, df):
    """Of a run, then of one whose second round's policy is not evaluated."""
    run = write_run(tmp_path / "run", kinds=("sum", "difference"))
    assert df(run)[0] == 0
    found = read_summary(run)
    assert found["final policy", "greedy accuracy"] == 0.75
    assert found["gain, final over base, by kind", "sampled accuracy, difference"] == 0.5
    assert found["device-seconds", "train-policy"] == 80

    (run / "evaluate-round-2" / "manifest.json").unlink()
    code, _, told = df(run)
    assert code == 1
    assert f"{run}: no round's policy is evaluated in it; " in told
    write_scores(run / "evaluate-round-1", 2)
    assert df(run)[0] == 0
    found = read_summary(run)
    assert found["final policy", "greedy accuracy"] == 0.5
    assert found["device-seconds", "train-policy"] == 40


def test_a_loop_is_summarized_by_its_validations(tmp_path, df):
    """After its first round it trained the repair model again; the one that it began with lies elsewhere."""
    run = write_run(tmp_path / "run")
    for name in ("base", "round-2"):
        (run / f"evaluate-{name}").rename(run / f"validation-{name}")
    write_scores(run / "validation-round-1", 2)
    write_step(run / "round-1" / "rl-repair", "rl-repair", {"train": 7.0}, {})
    assert df(run)[0] == 0
    found = read_summary(run)
    assert found["final policy", "sampled accuracy"] == 0.75
    assert {name: value for (section, name), value in found.items() if section == "device-seconds"} == {
        "rollout": 20, "build-masks": 50, "train-policy": 80, "rl-repair": 7, "evaluate": 300,
    }  # fmt: skip

    assert df(run, "--rounds", 1)[0] == 0
    found = read_summary(run)
    assert found["final policy", "sampled accuracy"] == 0.5
    assert {name: value for (section, name), value in found.items() if section == "device-seconds"} == {
        "rollout": 10, "build-masks": 25, "train-policy": 40, "evaluate": 200,
    }  # fmt: skip


def test_evaluations_on_test_problems_come_before_a_loops_validations(tmp_path, df):
    run = write_run(tmp_path / "run")
    for name, right in (("base", 0), ("round-1", 0), ("round-2", 0)):
        write_scores(run / f"validation-{name}", right)
    assert df(run)[0] == 0
    assert read_summary(run)["final policy", "greedy accuracy"] == 0.75
