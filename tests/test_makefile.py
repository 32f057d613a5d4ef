"""What `make all` would run, asked of make itself."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "1-sft-repair",
    "2-rl-repair",
    "round-1/rollout",
    "round-1/build-masks",
    "round-1/train-policy",
    "round-2/rollout",
    "round-2/build-masks",
    "round-2/train-policy",
    "evaluate-base",
    "evaluate-round-2",
]


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A run of two rounds in which every step has its manifest, each younger than the one before."""
    run = tmp_path / "run"
    would_run(run)
    now = time.time()
    for age, step in enumerate([*ORDER, "."]):
        name = run / step / ("summary.parquet" if step == "." else "manifest.json")
        name.parent.mkdir(parents=True, exist_ok=True)
        name.touch()
        os.utime(name, (now + age / 100, now + age / 100))
    time.sleep(0.2)
    return run


def would_run(run: Path, *options: str) -> list[str]:
    """Output folders of the commands that `make all` would start, in order."""
    command = ["make", "--dry-run", "all", f"RUN={run}", "ROUNDS=2", *options]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return re.findall(rf"df [a-z-]+ .*--out {re.escape(str(run))}/(\S+)", printed)


def test_an_empty_folder_runs_every_step_in_pipeline_order(tmp_path):
    steps = would_run(tmp_path / "run")
    assert sorted(steps) == sorted(ORDER)
    chain = [step for step in steps if not step.startswith("evaluate")]
    assert chain == ORDER[:8]
    assert steps.index("evaluate-round-2") > steps.index("round-2/train-policy")


def test_a_complete_run_does_nothing(complete):
    assert would_run(complete) == []


@pytest.mark.parametrize("lost", ORDER)
def test_a_lost_step_runs_again_with_those_after_it(complete, lost):
    (complete / lost / "manifest.json").unlink()
    after = ORDER[ORDER.index(lost) :] if lost != "evaluate-base" else [lost]
    assert sorted(would_run(complete)) == sorted(set(after) - ({"evaluate-base"} - {lost}))


def test_one_more_round_goes_on_from_the_newest_policy(complete):
    steps = would_run(complete, "ROUNDS=3")
    assert steps == ["round-3/rollout", "round-3/build-masks", "round-3/train-policy", "evaluate-round-3"]


def test_fewer_rounds_evaluate_the_policy_of_the_last_of_them(complete):
    assert would_run(complete, "ROUNDS=1") == ["evaluate-round-1"]


@pytest.mark.parametrize("setting", ["SET=train.gate=none", "BASE=org/model", "RECIPE=qwen2.5-vl-7b-gspo", "SEED=1"])
def test_another_setting_runs_everything_again(complete, setting):
    assert sorted(would_run(complete, setting)) == sorted(ORDER)


@pytest.mark.parametrize("in_recipe", [False, True])
def test_siblings_need_no_repair_model(tmp_path, in_recipe):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("masks:\n  repairer: sibling\n" if in_recipe else "seed: 1\n")
    options = [f"RECIPE={recipe}"] + ([] if in_recipe else ["SET=masks.repairer=sibling"])
    assert sorted(would_run(tmp_path / "run", *options)) == sorted(ORDER[2:])
    command = ["make", "--dry-run", "all", f"RUN={tmp_path / 'run'}", *options]
    assert "--repair-model" not in subprocess.check_output(command, cwd=ROOT, text=True)


def test_shipped_recipes_run_in_folders_of_their_own():
    names = [recipe.stem for recipe in (ROOT / "stages" / "recipes").glob("*.yaml")]
    command = ["make", "--dry-run", "clean"]
    folders = {subprocess.check_output([*command, f"RECIPE={name}"], cwd=ROOT, text=True) for name in names}
    assert len(folders) == len(names) >= 4
