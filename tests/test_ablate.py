"""`df ablate` on a cut-down digits set: what variants share, what a failure stops, what the table says."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pyarrow.parquet as pq
import pytest
import yaml

from stages.ablate import Ablation
from stages.ablation import VariantRun, ablation_rows
from stages.artifacts.columns import ABLATION, SAMPLES, SCORES
from stages.artifacts.lock import lock_output
from stages.artifacts.notes import read_manifest
from stages.artifacts.store import iterate_rows, write_rows
from stages.errors import DataError, ModelError, RecipeError
from stages.interruption import Stopped
from stages.recipe import RECIPES, load_recipe

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
    for name in ("train", "test"):
        pq.write_table(pq.read_table(digits / f"problems_{name}.parquet").slice(0, 40), folder / f"{name}.parquet")
    pq.write_table(pq.read_table(digits / "repair_set.parquet").slice(0, 100), folder / "repair_set.parquet")
    command = [sys.executable, "-m", "df_cli", "ablate", "--recipe", str(folder / "recipe.yaml")]
    command += ["--train", str(folder / "train.parquet"), "--test", str(folder / "test.parquet")]
    command += ["--repair-set", str(folder / "repair_set.parquet"), "--base", str(digits / "base")]
    command += ["--out", str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    return folder / "out", command, done


def rows_of(out: Path) -> dict[tuple[str, int | None, str], dict]:
    return {(r["variant"], r["seed"], r["measure"]): r for r in iterate_rows(out / "ablation.parquet", ABLATION)}


@pytest.mark.timeout(1200)
def test_a_variant_that_fails_is_named_and_stops_no_other(ablation):
    out, _, done = ablation
    assert done.returncode == 1, done.stderr
    rows = rows_of(out)
    failed = {variant for variant, _, measure in rows if measure == "failed"}
    assert failed == {"broken", "unlike_broken"}
    assert "no_such_module" in rows["broken", 0, "failed"]["note"]
    assert {variant for variant, _, measure in rows if measure == "sampled accuracy"} == {
        "base", "difference", "soft", "ungated", "sibling",
    }  # fmt: skip


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
    with pytest.raises(Stopped, match=r"out: stopped in evaluate, .*; give the same command again") as stop:
        ablation.run()
    assert stop.value.exit_code == exit_code
    assert mark.read_text() == "asked"


def test_variants_share_the_steps_that_they_have_in_common(ablation):
    out, *_ = ablation
    rounds = math.ceil(rows_of(out)["ungated", 0, "rounds"]["value"])
    found = defaultdict(int)
    for folder in (out / "steps").iterdir():
        found[folder.name.rpartition("-")[0]] += 1
    assert found["sft-repair"] == 1
    # Round one's rollouts serve all, its masks the three gates; the ungated variant goes on alone from there.
    assert found["rollout"] == rounds
    assert found["build-masks"] == rounds + 1
    assert found["train-policy"] == rounds + 3
    # Before the last round of the ungated variant it is the base policy, or one of its own.
    assert found["evaluate"] == 5 + (rounds > 1)


def test_the_ungated_variant_is_read_off_where_it_has_spent_what_the_baseline_spent(ablation):
    out, *_ = ablation
    rows = rows_of(out)
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


def test_accuracies_are_those_of_the_scores(ablation):
    out, *_ = ablation
    rows = rows_of(out)
    expected = []
    for folder in (out / "steps").glob("evaluate-*"):
        expected.append(mean(row["reward"] for row in iterate_rows(folder, SCORES) if row["mode"] == "sampled"))
    found = {v: row["value"] for (v, seed, name), row in rows.items() if name == "sampled accuracy" and seed is None}
    share = rows["ungated", 0, "rounds"]["value"] % 1
    before = [found["base"]] if rows["ungated", 0, "rounds"]["value"] < 1 else expected
    mixed = [(1 - share) * first + share * last for first in before for last in expected]
    assert min(abs(found["ungated"] - value) for value in mixed) < 1e-6
    assert all(min(abs(found[v] - value) for value in expected) < 1e-6 for v in found.keys() - {"ungated"})
    for name in ("difference", "soft", "ungated", "sibling"):
        gain = rows[name, None, "sampled accuracy"]["value"] - rows["base", None, "sampled accuracy"]["value"]
        assert rows[name, None, "sampled gain over base"]["value"] == pytest.approx(gain)


@pytest.mark.timeout(300)
def test_a_second_run_makes_no_step_again(ablation):
    out, command, _ = ablation
    before = {path: path.stat().st_mtime_ns for path in (out / "steps").rglob("*")}
    assert subprocess.run(command, capture_output=True).returncode == 1
    assert {path: path.stat().st_mtime_ns for path in (out / "steps").rglob("*")} == before


def write_scores(folder: Path, correct: dict[str, list[int]]) -> Path:
    folder.mkdir()
    rows = [
        {"problem_id": problem, "kind": None, "mode": mode, "draw": draw, "text": "", "reward": float(reward)}
        for problem, rewards in correct.items()
        for draw, reward in enumerate(rewards)
        for mode in ("sampled", "greedy")
    ]
    write_rows(folder / "scores-00000.parquet", SCORES, rows)
    return folder


def test_differences_are_paired_by_problem_and_by_the_seeds_that_both_have(tmp_path):
    scores = {
        ("base", 0): {"a": [1, 0], "b": [0, 0]},
        ("base", 1): {"a": [0, 0], "b": [1, 1]},
        ("ours", 0): {"a": [1, 1], "b": [1, 0]},
        ("ours", 1): {"a": [1, 1], "b": [1, 1]},
        ("other", 1): {"a": [0, 1], "b": [0, 0]},
    }
    runs = [
        VariantRun(name, seed, write_scores(tmp_path / f"{name}{seed}", correct))
        for (name, seed), correct in scores.items()
    ]
    runs.append(VariantRun("other", 0, error="it broke"))
    rows = {(r["variant"], r["seed"], r["measure"]): r for r in ablation_rows(runs, "ours", 1.0)}
    assert rows["ours", None, "sampled accuracy"]["value"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    # Problem a: 1 - .5 and 1 - 0; b: .5 - 0 and 1 - 1.
    assert rows["ours", None, "sampled gain over base"]["value"] == pytest.approx((0.75 + 0.25) / 2)
    assert rows["ours", None, "sampled gain over base"]["n"] == 2
    assert rows["other", None, "sampled difference to ours"]["value"] == pytest.approx((-0.5 - 1) / 2)
    assert rows["other", 0, "failed"]["note"] == "it broke"
    assert ("ours", None, "sampled difference to ours") not in rows


def test_a_matched_run_is_read_off_inside_its_last_round(tmp_path):
    """A quarter of the round that takes a from 0 to 1 and b from 1/2 to 0; the gain is over the base's own draws."""
    base = write_scores(tmp_path / "base", {"a": [0, 0], "b": [1, 0]})
    after = write_scores(tmp_path / "after", {"a": [1, 1], "b": [0, 0]})
    runs = [
        VariantRun("base", 0, base),
        VariantRun("ours", 0, after, rounds=0.25, device_seconds=10.0, scores_before=base, share=0.25),
        VariantRun("whole", 0, after, rounds=1, device_seconds=16.0),
    ]
    rows = {(r["variant"], r["seed"], r["measure"]): r for r in ablation_rows(runs, "ours", 1.0)}
    assert rows["ours", None, "sampled accuracy"]["value"] == pytest.approx((0.25 + 0.375) / 2)
    assert rows["ours", None, "greedy gain over base"]["value"] == pytest.approx((0.25 - 0.125) / 2)
    assert rows["whole", None, "sampled difference to ours"]["value"] == pytest.approx((0.75 - 0.375) / 2)
    assert rows["ours", 0, "rounds"]["value"] == 0.25
    assert rows["ours", 0, "device-seconds"]["value"] == 10.0


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
        runs.append(VariantRun("ours", seed, repair_model=folder))
    found = {row["measure"]: row["value"] for row in ablation_rows(runs, "ours", 1.0) if row["seed"] is None}
    assert found == pytest.approx({"repair Acc@1": 0.75, "repair Acc@2": 1.0, "repair edit cost": 0.05})


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


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("ablate.baseline=nothing", "baseline nothing is none of the variants"),
        ("ablate.variants={a: {matches: b}, b: {}}", "a matches b, which is no variant before it"),
    ],
)
def test_names_that_no_variant_has_are_refused(assignment, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("digits", [assignment])


def test_a_second_ablation_in_the_folder_is_told_of_the_first(tmp_path, digits):
    with lock_output(tmp_path):
        command = [sys.executable, "-m", "df_cli", "ablate", "--train", str(digits / "problems_train.parquet")]
        command += ["--test", str(digits / "problems_test.parquet"), "--base", str(digits / "base")]
        command += ["--repair-set", str(digits / "repair_set.parquet"), "--out", str(tmp_path), "--recipe", "digits"]
        done = subprocess.run(command, capture_output=True, text=True)
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
