"""`df ablate` on a cut-down digits set: what variants share, what a failure stops, what the table says."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from timeless import timeless, timeless_manifest

import doomed
from doomed import finished, finished_late, last_line
from forked import df, server
from stages.artifacts.columns import ABLATION, CURVES, SAMPLES, SCORES
from stages.artifacts.ledger import training_cost
from stages.artifacts.lock import lock_output
from stages.artifacts.manifests import read_manifest
from stages.artifacts.store import iterate_rows, write_rows
from stages.errors import DataError, ModelError, RecipeError
from stages.pages.page import MEGABYTE, report_page
from stages.pages.state import read_state
from stages.recipe import RECIPES, load_recipe
from stages.runtime.interruption import Requests, Stopped
from stages.s4_build_masks.stage import check_options
from stages.study.ablation import Ablation, best_rate, to_evaluate
from stages.study.curves import Point, Run, at, line, read_runs, repairs_of, rows_of, values_of
from stages.study.results import result_rows
from stages.study.run_folders import runs_on_test
from stages.study.spending import Policy
from stages.study.steps import Steps
from stages.training.losses import check_objective

SMALL = {
    "sft": {"epochs": 1},
    "rollout": {"problems": 16, "rows_per_shard": 128},
    "train": {"problems_per_step": 16},
    "evaluate": {"draws": 2, "image_removed": False},
    "ablate": {
        "rounds": 1,
        "seeds": [0],
        "variants": {
            "difference": {"repair_model": "sft"},
            "soft": {"repair_model": "sft", "set": ["train.gate=soft"]},
            # Nothing is wrong with the recipe itself: the step finds that its reward does not exist.
            "broken": {"repair_model": "sft", "set": ["reward.name=no_such_module:reward"]},
            "unlike_broken": {"repair_model": "sft", "matches": "broken"},
            "ungated": {"repair_model": "sft", "set": ["train.gate=none"], "matches": "difference"},
            "repair_only": {"repair_model": "sft", "rounds": 0},
            "sibling": {"repair_model": "none", "set": ["masks.repairer=sibling"]},
        },
    },
}


@pytest.fixture(scope="module")
def ablation(tmp_path_factory, digits: Path) -> tuple[Path, list[str], subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("ablation")
    recipe = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    for section, values in SMALL.items():
        recipe[section] = recipe.get(section, {}) | values
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name, split, first in (("train", "train", 0), ("test", "test", 0), ("validation", "test", 40)):
        table = pq.read_table(digits / f"problems_{split}.parquet").slice(first, 40)
        pq.write_table(table, folder / f"{name}.parquet")
    pq.write_table(pq.read_table(digits / "repair_set.parquet").slice(0, 100), folder / "repair_set.parquet")
    command = ["ablate", "--recipe", str(folder / "recipe.yaml")]
    command += ["--train", str(folder / "train.parquet"), "--test", str(folder / "test.parquet")]
    command += ["--repair-set", str(folder / "repair_set.parquet"), "--base", str(digits / "base")]
    command += ["--out", str(folder / "out")]
    done = df(*command)
    return folder / "out", command, done


def rows_of_file(out: Path) -> dict[tuple[str, int | None, str], dict]:
    return {(r["variant"], r["seed"], r["measure"]): r for r in iterate_rows(out / "ablation.parquet", ABLATION)}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_variant_that_fails_is_named_and_stops_no_other(ablation):
    out, _, done = ablation
    assert done.returncode == 1, done.stderr
    rows = rows_of_file(out)
    failed = {variant for variant, _, measure in rows if measure == "failed"}
    assert failed == {"broken", "unlike_broken"}
    drawn = ElementTree.parse(out / "curves.svg")
    legend = {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text") if text.text}
    assert {f"{name} (n = 1)" for name in ("difference", "soft", "ungated", "sibling")} <= legend
    assert not {text for text in legend if text.startswith(("broken", "base", "repair_only"))}
    assert "no_such_module" in rows["broken", 0, "failed"]["note"]
    assert {variant for variant, _, measure in rows if measure == "sampled accuracy"} == {
        "base", "difference", "soft", "ungated", "repair_only", "sibling",
    }  # fmt: skip


SAVED = "what was done is saved; give the same command again to go on"
ASKED = """
import signal, sys, time
from pathlib import Path
def stop(*_):
    Path(sys.argv[1]).write_text("asked")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_reaches_the_step_under_way_and_no_other_begins(number, exit_code, digits, tmp_path):
    mark = tmp_path / "mark"
    command = (sys.executable, "-c", ASKED, str(mark))
    files = [
        digits / name for name in ("problems_train.parquet", "problems_test.parquet", "repair_set.parquet", "base")
    ]
    ablation = Ablation("digits", [], *files, tmp_path / "out", launch=command, train_launch=command)

    def stop_when_it_runs():
        while not mark.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_it_runs).start()
    with pytest.raises(Stopped) as stop:
        ablation.run()
    assert str(stop.value) == f"{tmp_path / 'out'}: stopped ({number.name}), {SAVED}"
    assert stop.value.exit_code == exit_code
    assert mark.read_text() == "asked"


LIMITED = """
import sys, time
from pathlib import Path
time.sleep(float(sys.argv[sys.argv.index("--stop-after") + 1].removesuffix("s")))
Path(sys.argv[1]).write_text(" ".join(sys.argv[2:]))
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("name", "options", "limits"),
    [
        ("sft-repair", {"repair_set": "repair_set.parquet", "model": "base"}, "--stop-after 1s --save-every 5"),
        ("rollout", {"problems": "problems_train.parquet", "policy": "base"}, "--stop-after 1s"),
    ],
)
def test_the_command_of_a_step_has_the_time_that_is_left(name, options, limits, digits, recipe, tmp_path):
    """It stops by itself, with whatever exit status launchers give that, and nothing cuts it short."""
    mark, inputs = tmp_path / "mark", {option: digits / file for option, file in options.items()}
    command = (sys.executable, "-c", LIMITED, str(mark))
    steps = Steps(tmp_path / "out", "digits", command, command, Requests(stop_after_s=1, save_every=5))
    (tmp_path / "out").mkdir()
    with pytest.raises(Stopped) as stop:
        steps.make(tmp_path / "out" / "run" / name, name, recipe, [], 0, **inputs)
    assert str(stop.value) == f"{tmp_path / 'out'}: stopped (--stop-after, 1 s), {SAVED}"
    assert stop.value.exit_code == 75
    told = mark.read_text()
    assert told.startswith(f"{name} ")
    assert told.endswith(f" {inputs.popitem()[1]} {limits}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stopped_by_its_limit_and_by_a_signal_it_does_nothing_twice(ablation, tmp_path):
    """Before its first step is done, then between optimizer steps; its steps are those of a study that went on."""
    whole, *_ = ablation
    out, words = tmp_path / "out", rewritten(ablation, out=tmp_path / "out", variant="sibling")

    def life(*options, death=None):
        return server().Process(target=doomed.run, args=([*words, *options], out, death, signal.SIGTERM, False))

    assert finished_late(life("--stop-after", "1s"), out) == 75
    assert last_line(out) == f"{out}: stopped (--stop-after, 1 s), {SAVED}"
    assert not list((out / "steps").rglob("manifest.json"))
    checkpoint = doomed.Point("finish steps/train-policy-*/progress.json", "after")
    assert finished(life("--save-every", "1", death=checkpoint)) == 143
    assert last_line(out) == f"{out}: stopped (SIGTERM), {SAVED}"

    complete = {file: file.stat().st_mtime_ns for file in (out / "steps").rglob("manifest.json")}
    (progress,) = (out / "steps").rglob("progress.json")
    before = json.loads(progress.read_text())["device_seconds"]
    assert finished(life()) == 0, last_line(out)
    assert {file: file.stat().st_mtime_ns for file in complete} == complete
    spent = read_manifest(progress.parent)["device_seconds"]
    assert before["train"] > 0
    assert all(seconds <= spent[phase] for phase, seconds in before.items())
    (found,) = [run for run in read_runs(out / "curves.parquet") if run.variant == "sibling"]
    costs = [
        training_cost(read_manifest(f.parent))
        for f in (out / "steps").rglob("manifest.json")
        if "evaluate" not in str(f)
    ]
    assert len(costs) == 3
    assert found.points[-1].device_seconds == pytest.approx(sum(costs))
    made = sorted((out / "steps").iterdir())
    assert [contents(step) for step in made] == [contents(whole / "steps" / step.name) for step in made]


def contents(step: Path) -> tuple[dict[str, object], object]:
    """A step's manifest, with the hashes of its files, and its metrics, but for what tells of machine and place."""
    manifest, metrics = timeless_manifest(step / "manifest.json"), step / "metrics.parquet"
    del manifest["inputs"]  # their hashes are in the step's name
    return manifest, timeless(metrics) if metrics.exists() else None


@pytest.mark.slow
def test_variants_share_the_steps_that_they_have_in_common(ablation):
    out, *_ = ablation
    rounds = math.ceil(rows_of_file(out)["ungated", 0, "rounds"]["value"])
    found = defaultdict(int)
    for folder in (out / "steps").iterdir():
        found[folder.name.rpartition("-")[0]] += 1
    assert found["sft-repair"] == 1
    # Round one's rollouts serve all, its masks the three gates; the ungated variant goes on alone from there.
    assert found["rollout"] == rounds
    assert found["build-masks"] == rounds + 1
    assert found["train-policy"] == rounds + 3
    # The base serves every run's start; before its last round the ungated variant may have a policy of its own.
    assert found["evaluate"] == 5 + (rounds > 1)


@pytest.mark.slow
def test_the_ungated_variant_is_read_off_where_it_has_spent_what_the_baseline_spent(ablation):
    out, *_ = ablation
    rows = rows_of_file(out)
    budget, spent = (rows[name, 0, "device-seconds"]["value"] for name in ("difference", "ungated"))
    assert spent == pytest.approx(budget, rel=1e-6)
    rounds = rows["ungated", 0, "rounds"]["value"]
    manifests = [read_manifest(folder) for folder in (out / "steps").iterdir()]
    sft = next(m for m in manifests if m["step"] == "sft-repair")
    assert sft["device_seconds"]["evaluate"] > 0
    cost = sum(seconds for phase, seconds in sft["device_seconds"].items() if phase != "evaluate")
    costs = [cost]
    for number in range(1, math.ceil(rounds) + 1):
        # Of round one's trained policies it is the one with gate none.
        own = [m for m in manifests if m["seed"] == number and m["step"] in ("rollout", "build-masks", "train-policy")]
        own = [m for m in own if m["step"] != "train-policy" or m["recipe"]["train"]["gate"] == "none"]
        own = [m for m in own if m["step"] != "build-masks" or "repair_model" in m["inputs"]]
        costs.append(costs[-1] + sum(sum(m["device_seconds"].values()) for m in own))
    assert costs[-2] < budget <= costs[-1]
    assert rounds == pytest.approx(len(costs) - 2 + (budget - costs[-2]) / (costs[-1] - costs[-2]))


@pytest.mark.slow
def test_accuracies_are_those_of_the_scores(ablation):
    out, *_ = ablation
    rows = rows_of_file(out)
    expected = []
    for folder in (out / "steps").glob("evaluate-*"):
        expected.append(mean(row["reward"] for row in iterate_rows(folder, SCORES) if row["mode"] == "sampled"))
    found = {v: row["value"] for (v, seed, name), row in rows.items() if name == "sampled accuracy" and seed is None}
    share = rows["ungated", 0, "rounds"]["value"] % 1
    before = [found["base"]] if rows["ungated", 0, "rounds"]["value"] < 1 else expected
    mixed = [(1 - share) * first + share * last for first in before for last in expected]
    assert min(abs(found["ungated"] - value) for value in mixed) < 1e-6
    assert all(min(abs(found[v] - value) for value in expected) < 1e-6 for v in found.keys() - {"ungated"})
    assert found["repair_only"] == found["base"]
    for name in ("difference", "soft", "ungated", "sibling"):
        gain = rows[name, None, "sampled accuracy"]["value"] - rows["base", None, "sampled accuracy"]["value"]
        assert rows[name, None, "sampled gain over base"]["value"] == pytest.approx(gain)


@pytest.mark.slow
def test_each_runs_folder_shows_its_steps(ablation):
    out, *_ = ablation
    runs = {(run.variant, run.seed): run for run in read_runs(out / "curves.parquet")}
    states = {(variant, seed): read_state(folder) for variant, seed, folder in runs_on_test(out)}
    assert {name for name, state in states.items() if state is not None} == runs.keys()
    for name, run in runs.items():
        assert states[name].scored().keys() == {point.round for point in run.points}
        for point in run.points[1:]:
            assert states[name].cost_after(int(point.round)) == pytest.approx(point.device_seconds), name
    moved = out.rename(out.with_name("moved"))
    shown = report_page([moved], MEGABYTE)
    moved.rename(out)
    assert "<h2>Errors and their repairs</h2>" in shown
    assert "<option value='0'>difference (" in shown
    assert "is on disk" not in shown
    assert "are not on disk" not in shown


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_run_makes_no_step_again(ablation):
    out, command, _ = ablation
    before = {path: path.stat().st_mtime_ns for path in (out / "steps").rglob("*")}
    assert df(*command).returncode == 1
    assert {path: path.stat().st_mtime_ns for path in (out / "steps").rglob("*")} == before


def write_scores(folder: Path, correct: dict[str, list[int | None]]) -> Path:
    folder.mkdir()
    rows = [
        {"problem_id": problem, "kind": None, "mode": mode, "draw": draw, "text": "", "reward": reward}
        for problem, rewards in correct.items()
        for draw, reward in enumerate(rewards)
        for mode in ("sampled", "greedy")
    ]
    write_rows(folder / "scores-00000.parquet", SCORES, rows)
    return folder


def run_of(name: str, seed: int, scores: Path, **others) -> Run:
    return Run(name, seed, "test", points=[Point(1, 9.0, 8, values_of(scores, 1.0))], **others)


def test_differences_are_paired_by_problem_and_by_the_seeds_that_both_have(tmp_path):
    scores = {
        ("base", 0): {"a": [1, 0], "b": [0, 0]},
        ("base", 1): {"a": [0, 0], "b": [1, 1]},
        ("ours", 0): {"b": [1, 0], "a": [1, 1]},
        ("ours", 1): {"a": [1, 1], "b": [1, 1]},
        ("other", 1): {"a": [0, 1], "b": [0, 0]},
    }
    runs = [
        run_of(name, seed, write_scores(tmp_path / f"{name}{seed}", correct))
        for (name, seed), correct in scores.items()
    ]
    runs.append(Run("other", 0, "test", error="it broke"))
    rows = {(r["variant"], r["seed"], r["measure"]): r for r in result_rows(runs, "ours")}
    assert rows["ours", None, "sampled accuracy"]["value"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    # Problem a: 1 - .5 and 1 - 0; b: .5 - 0 and 1 - 1.
    assert rows["ours", None, "sampled gain over base"]["value"] == pytest.approx((0.75 + 0.25) / 2)
    assert rows["ours", None, "sampled gain over base"]["n"] == 2
    assert rows["other", None, "sampled difference to ours"]["value"] == pytest.approx((-0.5 - 1) / 2)
    assert rows["other", 0, "failed"]["note"] == "it broke"
    assert ("ours", None, "sampled difference to ours") not in rows


def test_a_problem_that_one_seed_could_not_score_is_left_out_of_all(tmp_path):
    scores = {
        ("base", 0): {"a": [1, 0], "b": [0, 0], "c": [1, 1]},
        ("base", 1): {"a": [0, 0], "b": [1, 1], "c": [0, 0]},
        ("ours", 0): {"a": [1, 1], "b": [None, None], "c": [1, None]},
        ("ours", 1): {"a": [1, 0], "b": [1, 1], "c": [1, 1]},
    }
    runs = [
        run_of(name, seed, write_scores(tmp_path / f"{name}{seed}", correct))
        for (name, seed), correct in scores.items()
    ]
    rows = {(r["variant"], r["seed"], r["measure"]): r for r in result_rows(runs, "ours")}
    accuracy, gain = (rows["ours", None, f"sampled {name}"] for name in ("accuracy", "gain over base"))
    assert (accuracy["n"], gain["n"]) == (2, 2)
    assert accuracy["value"] == pytest.approx((1 + 0.5 + 1 + 1) / 4)  # a and c, two seeds
    assert gain["value"] == pytest.approx((0.5 + 0.5 + 0 + 1) / 4)
    assert rows["base", None, "sampled accuracy"]["n"] == 3


def test_a_run_is_read_off_where_its_budget_ends(tmp_path):
    """A quarter of the round that takes a from 0 to 1 and b from 1/2 to 0; the gain is over the base's own draws."""
    base = values_of(write_scores(tmp_path / "base", {"a": [0, 0], "b": [1, 0]}), 1.0)
    after = values_of(write_scores(tmp_path / "after", {"a": [1, 1], "b": [0, 0]}), 1.0)
    points = [Point(0, 8.0, 0, base), Point(1, 16.0, 384, after)]
    runs = [
        Run("base", 0, "test", points=points[:1]),
        Run("ours", 0, "test", points=points, budget=10.0),
        Run("whole", 0, "test", points=points),
    ]
    rows = {(r["variant"], r["seed"], r["measure"]): r for r in result_rows(runs, "ours")}
    assert rows["ours", None, "sampled accuracy"]["value"] == pytest.approx((0.25 + 0.375) / 2)
    assert rows["ours", None, "greedy gain over base"]["value"] == pytest.approx((0.25 - 0.125) / 2)
    assert rows["whole", None, "sampled difference to ours"]["value"] == pytest.approx((0.75 - 0.375) / 2)
    found = {name: rows["ours", 0, name]["value"] for name in ("rounds", "device-seconds", "rollouts")}
    assert found == {"rounds": 0.25, "device-seconds": 10.0, "rollouts": 96.0}
    assert at(points, 3.0) is points[0]
    assert at(points, 17.0) is points[1]


def test_variants_are_compared_at_smaller_costs_too(tmp_path):
    """At 12 device-seconds ours is half way from 0 to 1 on a, from 1/2 to 0 on b; theirs has not begun to learn."""
    base = values_of(write_scores(tmp_path / "base", {"a": [0, 0], "b": [1, 0]}), 1.0)
    after = values_of(write_scores(tmp_path / "after", {"a": [1, 1], "b": [0, 0]}), 1.0)
    runs = [
        Run("ours", 0, "test", points=[Point(0, 8.0, 0, base), Point(1, 16.0, 384, after)]),
        Run("theirs", 0, "test", points=[Point(0, 14.0, 0, base), Point(1, 18.0, 384, after)]),
    ]
    rows = {(r["variant"], r["measure"]): r["value"] for r in result_rows(runs, "theirs", [12.0]) if r["seed"] is None}
    assert rows["ours", "greedy accuracy at 12 device-seconds"] == pytest.approx((0.5 + 0.25) / 2)
    assert rows["ours", "greedy difference to theirs at 12 device-seconds"] == pytest.approx((0.5 - 0.25) / 2)
    assert rows["ours", "greedy difference to theirs"] == 0.0


def test_policies_are_evaluated_evenly_over_the_cost_and_on_both_sides_of_its_end():
    def costs(spent, budget, evaluations):
        policies = [Policy(Path(str(number)), number, cost, 0) for number, cost in enumerate(spent)]
        return [policy.device_seconds for policy in to_evaluate(policies, budget, evaluations)]

    assert costs([20, 30, 40, 50, 60, 70], None, 2) == [20, 40, 70]
    assert costs([20, 30, 40, 50, 60, 70], 65, 2) == [20, 40, 60, 70]
    assert costs([20, 30, 40, 50, 60, 70], 70, 1) == [20, 70]
    assert costs([0.05, 0.1], None, 3) == [0.05, 0.1]  # 0.1 * 3 / 3 is more than 0.1
    assert costs([20], 10, 3) == [20]
    assert costs([0], None, 1) == [0]


def test_a_line_goes_from_where_every_seed_has_started_to_where_one_ends():
    """Seed 0 rises by .1 in 10 device-seconds, seed 1 by .2 in 20, and is read at 25, inside its last round."""

    def run(seed, costs, accuracies, budget=None):
        found = [{"sampled": np.array([value])} for value in accuracies]
        points = [Point(n, cost, 10 * n, value) for n, (cost, value) in enumerate(zip(costs, found, strict=True))]
        return Run("ours", seed, "test", points=points, budget=budget)

    runs = [run(0, [10, 20, 30], [0.1, 0.2, 0.3]), run(1, [5, 15, 35], [0.0, 0.1, 0.3], budget=25)]
    grid, accuracy = line(runs, "sampled", "device_seconds")
    assert (grid[0], grid[-1]) == (10, 25)
    assert accuracy[:, 0] == pytest.approx([0.1, 0.05])
    assert accuracy[:, -1] == pytest.approx([0.25, 0.2])
    grid, accuracy = line(runs, "sampled", "rollouts")
    assert (grid[0], grid[-1]) == (0, 15)
    assert accuracy[:, -1] == pytest.approx([0.25, 0.2])


def test_runs_are_read_as_they_were_recorded(tmp_path):
    values = [{"sampled": np.array([0.5, 1.0]), "greedy": np.array([0.0, 1.0])} for _ in range(2)]
    points = [Point(number, 10.0 * number, 64.0 * number, values[number]) for number in range(2)]
    repairs = {"Acc@1": np.array([0.25, 0.5, 1.0])}
    runs = [
        Run("ours", 0, "test", 1e-4, "k1", 12.0, points, repairs),
        Run("ours", 0, "test", 1e-4, "k1", 12.0, points, repairs, study="again"),
        Run("ours", 1, "validation", None, "k2", None, points[:1]),
    ]
    write_rows(tmp_path / "curves.parquet", CURVES, rows_of([*runs, Run("broken", 0, "test", error="no")]))
    for found, run in zip(read_runs(tmp_path / "curves.parquet"), runs, strict=True):
        assert replace(found, points=(), repairs={}) == replace(run, points=(), repairs={})
        assert {name: list(v) for name, v in found.repairs.items()} == {n: list(v) for n, v in run.repairs.items()}
        for point, expected in zip(found.points, run.points, strict=True):
            assert replace(point, values={}) == replace(expected, values={})
            assert {mode: list(v) for mode, v in point.values.items()} == {
                "sampled": [0.5, 1.0], "greedy": [0.0, 1.0],
            }  # fmt: skip
    assert read_runs(tmp_path / "none.parquet") == []


def test_repair_models_are_measured_by_error_over_seeds(tmp_path):
    """Two seeds, one error with 1 and 2 right of 2 attempts: Acc@1 .5 and 1, Acc@2 1 and 1."""
    runs = []
    for seed, rewards in enumerate(([1.0, 0.0], [1.0, 1.0])):
        folder = tmp_path / str(seed)
        folder.mkdir()
        rows = [
            {"problem_id": "p", "attempt": k, "answer": "", "error": "", "text": "", "reward": reward, "cost": 0.1 * k}
            for k, reward in enumerate(rewards)
        ]
        write_rows(folder / "samples.parquet", SAMPLES, rows)
        scores = write_scores(tmp_path / f"scores{seed}", {"p": [1]})
        runs.append(run_of("ours", seed, scores, repairs=repairs_of(folder, 1.0)))
    found = {row["measure"]: row["value"] for row in result_rows(runs, "ours") if row["seed"] is None}
    repairs = {name: value for name, value in found.items() if name.startswith("repair")}
    assert repairs == pytest.approx({"repair Acc@1": 0.75, "repair Acc@2": 1.0, "repair edit cost": 0.05})
    assert repairs_of(tmp_path, 1.0) == {}


def rewritten(ablation: tuple, **changes) -> list[str]:
    """The fixture's command with other values of its options."""
    _, command, _ = ablation
    command = list(command)
    for option, value in changes.items():
        command += [f"--{option}", str(value)]
    return command


@pytest.fixture(scope="module")
def tuned(ablation, tmp_path_factory) -> tuple[Path, list[str]]:
    """Siblings at two learning rates, within a budget that takes a round or more, nothing kept of the rounds."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    settings = ["learning_rates=[3.0e-5, 1.0e-9]", "device_seconds=2", "evaluations=2", "keep_rounds=false"]
    command = rewritten(ablation, out=out, validation=ablation[0].parent / "validation.parquet", variant="sibling")
    command += [word for setting in settings for word in ("--set", f"ablate.{setting}")]
    done = df(*command)
    assert done.returncode == 0, done.stderr
    return out, command


@pytest.mark.slow
def test_the_learning_rate_is_tuned_on_validation_problems(tuned):
    out, _ = tuned
    runs = read_runs(out / "curves.parquet")
    tuning = {run.learning_rate: run.result.values["sampled"].mean() for run in runs if run.problems == "validation"}
    assert tuning.keys() == {3e-5, 1e-9}
    assert {run.seed for run in runs if run.problems == "validation"} == {1000}
    best = max(sorted(tuning), key=tuning.get)
    (tested,) = [run for run in runs if run.problems == "test" and run.variant == "sibling"]
    assert tested.learning_rate == best
    assert rows_of_file(out)["sibling", 0, "learning rate"]["value"] == best
    assert tested.result.device_seconds == pytest.approx(2.0)
    assert [point.round for point in tested.points] == sorted({point.round for point in tested.points})
    assert tested.points[0].device_seconds < 2.0 <= tested.points[-1].device_seconds
    assert tested.points[-1].rollouts == 16 * 8 * tested.points[-1].round


def test_of_learning_rates_that_are_equally_good_the_lowest_is_taken():
    """1 + 1 + 1/3 and 1/3 + 1 + 1 differ in the last digit."""
    low, high = float(np.mean([1 / 3, 1, 1])), float(np.mean([1, 1, 1 / 3]))
    assert low < high
    assert best_rate({3e-4: high, 1e-4: low}) == 1e-4
    assert best_rate({3e-4: high, 1e-4: 0.7}) == 3e-4
    assert best_rate({1e-4: math.nan, 3e-4: 0.0}) == 3e-4


@pytest.mark.slow
def test_a_recorded_run_needs_its_steps_no_more(tuned):
    out, command = tuned
    assert {folder.name.rpartition("-")[0] for folder in (out / "steps").iterdir()} == {"evaluate"}
    (tested,) = [r for r in read_runs(out / "curves.parquet") if (r.variant, r.problems) == ("sibling", "test")]
    (folder,) = [folder for variant, _, folder in runs_on_test(out) if variant == "sibling"]
    kept = {file.name for file in folder.glob("round-*/*/*")}
    assert kept == {"manifest.json", "metrics.parquet"}
    last = tested.points[-1]
    assert read_state(folder).cost_after(int(last.round)) == pytest.approx(last.device_seconds)
    shown = report_page([out], MEGABYTE)
    assert "The rollouts and repairs of 1 of 1 runs are not on disk" in shown
    assert "sibling (n = 1): train-policy" in shown
    before = (out / "ablation.parquet").read_bytes()
    shutil.rmtree(out / "steps")
    done = df(*command)
    assert done.returncode == 0, done.stderr
    assert not (out / "steps").exists()
    assert (out / "ablation.parquet").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "nothing"}, "--variant nothing: no such variant; there are broken, difference, repair_only, "),
        ({"variant": "ungated"}, "--variant ungated: it matches difference; give --variant difference too"),
        ({"set": "ablate.learning_rates=[1.0e-4]"}, "ablate.learning_rates are tuned on problems of their own; give "),
    ],
)
def test_what_cannot_be_run_is_told_before_the_first_step(ablation, tmp_path, changes, message):
    done = df(*rewritten(ablation, out=tmp_path / "out", **changes))
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_edited_while_a_study_runs_changes_nothing(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rollout: {problems: 8}")
    ablation = Ablation(str(recipe), ["sft.epochs=2"], *[tmp_path] * 5)
    before = ablation.recipe_with([])
    recipe.write_text("rollout: {problems: 16}")
    assert ablation.recipe_with(["sft.epochs=3"]).rollout.problems == before.rollout.problems == 8
    assert (before.sft.epochs, ablation.recipe_with([]).sft.epochs) == (2, 2)


def test_a_set_of_variants_goes_by_its_name():
    rivals = load_recipe("digits", ["ablate.variants=rivals"]).ablate.variants
    assert {"grpo", "difference", "sft_then_grpo", "difference_without_set", "prime"} <= rivals.keys()
    for variant in rivals.values():
        load_recipe("digits", variant.set)
    assert load_recipe("digits", ["ablate.variants=paper"]) == load_recipe("digits")


@pytest.mark.parametrize("name", load_recipe("digits").ablate.variants)
def test_the_papers_variants_are_recipes_that_differ_from_the_baseline(name):
    variants = load_recipe("digits").ablate.variants
    variant = variants[name]
    assert (
        load_recipe("digits", variant.set) != load_recipe("digits")
        or variant.repair_model == "sft"
        or name == "difference"
    )
    assert (variant.repair_model == "none") == ("masks.repairer=sibling" in variant.set)


@pytest.mark.parametrize("name", load_recipe("digits").ablate.variants)
@pytest.mark.parametrize("settings", [[], ["train.objective.algorithm=ppo"]])
def test_the_papers_variants_run_where_problems_without_a_correct_rollout_are_repaired(name, settings):
    settings = ["masks.on_no_correct=repair", *settings]
    variant = load_recipe("digits", settings).ablate.variants[name]
    recipe = load_recipe("digits", [*settings, *variant.set])
    check_options(recipe, None if variant.repair_model == "none" else Path("repair-model"))
    check_objective(recipe.train.objective, recipe.rollout, with_critic=recipe.train.has_critic)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("ablate.baseline=nothing", "baseline nothing is none of the variants"),
        ("ablate.variants={a: {matches: b}, b: {}}", "a matches b, which is no variant before it"),
        ("ablate.variants=others", "no set of variants is called others; there are paper, rivals"),
        ("ablate.tuning_seed=1", "tuning_seed 1 is one of seeds"),
    ],
)
def test_names_that_no_variant_has_are_refused(assignment, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits", [assignment])


def test_a_second_ablation_in_the_folder_is_told_of_the_first(tmp_path, digits):
    with lock_output(tmp_path):
        command = ["ablate", "--train", str(digits / "problems_train.parquet")]
        command += ["--test", str(digits / "problems_test.parquet"), "--base", str(digits / "base")]
        command += ["--repair-set", str(digits / "repair_set.parquet"), "--out", str(tmp_path), "--recipe", "digits"]
        done = df(*command)
    assert done.returncode == 1
    assert "has been writing here since" in done.stderr


@pytest.mark.parametrize("missing", ["train", "test", "repair_set", "base"])
def test_nothing_begins_where_an_input_is_missing(missing, digits, tmp_path):
    inputs = {
        "train": digits / "problems_train.parquet",
        "test": digits / "problems_test.parquet",
        "repair_set": digits / "repair_set.parquet",
        "base": digits / "base",
    }
    gone = tmp_path / "gone"
    ablation = Ablation("digits", ["ablate.seeds=[0]"], out=tmp_path / "out", **inputs | {missing: gone})
    with pytest.raises((DataError, ModelError), match=f"{gone}: no such "):
        ablation.run()
    assert not (tmp_path / "out").exists()
