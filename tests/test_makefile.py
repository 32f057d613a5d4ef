"""What `make all` would run, asked of make itself, beside steps that the store wrote and no model."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from df_cli.main import app
from stages.artifacts.columns import DRAFTS, EPISODES, GROUPS, METRICS, REPAIRS, ROLLOUTS, SCORES
from stages.artifacts.manifests import MANIFEST
from stages.artifacts.step import Step
from stages.chain import Chain
from stages.declared import declare
from stages.recipe import load_recipe
from stages.run_folder import note_summary

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
CHAIN = ORDER[:8]
TABLES = {
    "sft-repair": (METRICS,),
    "rl-repair": (DRAFTS, EPISODES, METRICS),
    "rollout": (ROLLOUTS,),
    "build-masks": (REPAIRS, GROUPS),
    "train-policy": (METRICS,),
    "evaluate": (SCORES,),
}
TRAINS = ("sft-repair", "rl-repair", "train-policy")
OF_EVERY_COMMAND = {
    *("out", "recipe", "assignments", "seed", "overwrite", "overwrite_changed", "dry_run"),
    *("stop_after", "save_every", "engine", "on_bad_row"),
}


def make(
    run: Path, *options: str, dry: bool = True, target: str = "all", at: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """In this checkout its environment stays as it is."""
    flags = [*(["--dry-run"] if dry else []), *(["-o", ".venv/installed"] if at == ROOT else [])]
    command = ["make", *flags, target, f"RUN={run}", *options]
    if not any(option.startswith("ROUNDS=") for option in options):
        command.append("ROUNDS=2")
    # `make test` tells the make below it that it is one, and what it was called with.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")
    }
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=at, capture_output=True, text=True, check=False, env=environment)


def commands(run: Path, *options: str) -> dict[str, str]:
    """Those that `make all` would start, by output folder, in order."""
    done = make(run, *options)
    assert done.returncode == 0, done.stderr
    found = re.findall(rf"df ([a-z-]+ .*--out {re.escape(str(run))}/(\S+).*)", done.stdout)
    return {folder: command for command, folder in found}


def would_run(run: Path, *options: str) -> list[str]:
    return [*commands(run, *options)]


def read(command: str) -> tuple[str, dict[str, Any]]:
    """The name of a command and its options, as `df` reads them."""
    name, *arguments = shlex.split(command)
    return name, get_command(app).commands[name].make_context(name, arguments).params


def write_step(command: str, content: bytes = b"weights") -> None:
    """The output folder that this command would leave, by the store's own means."""
    name, given = read(command)
    recipe = load_recipe(given["recipe"], given["assignments"]).model_copy(update={"seed": given["seed"]})
    out, inputs = given["out"], {option: value for option, value in given.items() if option not in OF_EVERY_COMMAND}
    step = Step.open(out, declare(name, recipe, inputs))
    for spec in TABLES[name]:
        step.write_shards(0, {spec: []})
    if name in TRAINS:
        (out / "model").mkdir()
        (out / "model" / "model.safetensors").write_bytes(content)
        (out / "optimizer.safetensors").write_bytes(b"state of " + content)
    step.finish()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A run of two rounds in which every step is complete."""
    run = tmp_path_factory.mktemp("written") / "run"
    for command in commands(run).values():
        write_step(command)
    (run / "summary.parquet").touch()
    (run / "report.html").touch()
    note_summary(run, 2)
    return run


@pytest.fixture
def complete(written, tmp_path) -> Path:
    """The same, copied: every file is as young as every other."""
    return Path(shutil.copytree(written, tmp_path / "run", copy_function=shutil.copyfile))


def state(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}


def test_an_empty_folder_runs_every_step_in_pipeline_order(tmp_path):
    assert would_run(tmp_path / "run") == ORDER
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("repair_model", ["rl", "none"])
def test_the_steps_are_those_of_the_chain(repair_model, tmp_path):
    run, data, wanted = tmp_path / "run", Path("data/digits"), []

    def note(place: str, command: str, seed: int, /, **inputs: Any) -> Path:
        wanted.append((command, {**inputs, "seed": seed, "out": run / place}))
        return run / place

    chain = Chain(note, data / "problems_train.parquet", data / "base", data / "repair_set.parquet", seed=4)
    chain.run(repair_model, 2, test=data / "problems_test.parquet")
    siblings = ["SET=masks.repairer=sibling"] if repair_model == "none" else []
    shown = [read(command) for command in commands(run, "SEED=4", *siblings).values()]

    assert [name for name, _ in shown] == [name for name, _ in wanted]
    for (_, given), (_, inputs) in zip(shown, wanted, strict=True):
        assert {option: given.pop(option) for option in inputs} == inputs
        assert (given.pop("recipe"), given.pop("assignments")) == ("digits", [text[4:] for text in siblings])
        assert set(given.values()) <= {None, False, "fail", "repair"}  # what an option is that nobody gave


def test_a_complete_run_does_nothing(complete):
    done = make(complete, dry=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "make: Nothing to be done for 'all'.\n", "")


def first_ordinary(values, count):
    """Parameters, of which the first so many are no slow ones: each asks make up to three times, for a second each."""
    return [pytest.param(value, marks=() if i < count else pytest.mark.slow) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    "lost", first_ordinary(["round-1/build-masks", "evaluate-base", "1-sft-repair", "round-2/train-policy"], 2)
)
def test_a_lost_step_runs_again_and_those_after_it_are_looked_at_again(complete, lost):
    shutil.rmtree(complete / lost)
    found = commands(complete)
    after = [] if lost == "evaluate-base" else ORDER[ORDER.index(lost) + 1 :]
    base_alone = {"evaluate-base"} | ({"round-1/rollout"} if "repair" in lost else set())  # these read the base policy
    assert [*found] == [lost, *(step for step in after if step not in base_alone)]
    assert "made with other" not in make(complete).stderr

    write_step(found[lost])
    assert would_run(complete) == []  # what reads it has read the same bytes


def test_a_step_that_comes_out_otherwise_is_no_leave_to_overwrite_those_after_it(complete):
    before = state(complete)
    shutil.rmtree(complete / "2-rl-repair")
    command = commands(complete)["2-rl-repair"]
    write_step(command, b"other weights")

    done = make(complete, dry=False)
    assert done.returncode == 2
    assert f"{complete}/round-1/build-masks: made with other inputs.repair_model\n" in done.stderr
    assert done.stderr.count("made with other inputs.repair_model\n") == 2  # of both rounds
    assert "make: nothing is overwritten without OVERWRITE=1; or take another RUN" in done.stderr
    changed = {name for name, content in state(complete).items() if before.get(name) != content}
    assert all(name.startswith("2-rl-repair/") for name in changed)


def test_one_more_round_goes_on_from_the_newest_policy(complete):
    steps = would_run(complete, "ROUNDS=3")
    assert steps == ["round-3/rollout", "round-3/build-masks", "round-3/train-policy", "evaluate-round-3"]


def test_fewer_rounds_evaluate_the_policy_of_the_last_of_them(complete):
    assert would_run(complete, "ROUNDS=1") == ["evaluate-round-1"]
    assert f"df summarize {complete} --rounds 1" in make(complete, "ROUNDS=1").stdout


def test_a_summary_of_other_rounds_is_made_again(complete):
    write_step(commands(complete, "ROUNDS=1")["evaluate-round-1"])
    assert f"df summarize {complete} --rounds 1" in make(complete, "ROUNDS=1").stdout
    note_summary(complete, 1)
    assert "df " not in make(complete, "ROUNDS=1").stdout
    assert f"df summarize {complete} --rounds 2" in make(complete).stdout


def test_a_page_follows_its_summary_and_is_written_where_there_is_none(complete):
    (complete / "report.html").unlink()
    assert make(complete).stdout.splitlines() == [f".venv/bin/df report {complete}"]
    (complete / "report.html").touch()
    (complete / "summary.json").unlink()
    assert make(complete).stdout.splitlines()[-2:] == [
        f".venv/bin/df summarize {complete} --rounds 2", f".venv/bin/df report {complete}",
    ]  # fmt: skip


ROUND_1, ROUND_2 = ORDER[2:5], ORDER[5:8]
CHANGES = {
    "SET=train.gate=none": (["round-1/train-policy", "round-2/train-policy"], "recipe.train.gate"),
    "TEST=data/digits/problems_train.parquet": (["evaluate-base", "evaluate-round-2"], "inputs.problems"),
    "SEED=1": (ORDER, "seed"),
    "BASE=org/model": (
        [step for step in ORDER if "round-2" not in step and step != "2-rl-repair"] + ["2-rl-repair"],
        "inputs.",
    ),
    "SET=masks.candidates=3": (["round-1/build-masks", "round-2/build-masks"], "recipe.masks.candidates"),
    "SET=rollout.problems=7": (["round-1/rollout", "round-2/rollout"], "recipe.rollout.problems"),
    "SET=repair_rl.c1=false": (["2-rl-repair"], "recipe.repair_rl.c1"),
    "SET=sft.epochs=9": (["1-sft-repair"], "recipe.sft.epochs"),
    "SET=evaluate.draws=2": (["evaluate-base", "evaluate-round-2"], "recipe.evaluate.draws"),
}


@pytest.mark.parametrize("change", first_ordinary(CHANGES, 4))
def test_a_step_runs_again_when_what_it_reads_changed_and_nothing_is_overwritten_unasked(change, complete):
    steps, names = CHANGES[change]
    before = state(complete)
    done = make(complete, change, dry=False)

    told = re.findall(rf"^{re.escape(str(complete))}/(\S+): made with other (\S+)", done.stderr, flags=re.MULTILINE)
    assert sorted(step for step, _ in told) == sorted(steps)
    assert all(what.startswith(names) for _, what in told)
    assert done.returncode == 2
    assert "make: nothing is overwritten without OVERWRITE=1; or take another RUN" in done.stderr
    assert "df " not in done.stdout
    assert state(complete) == before
    assert would_run(complete) == []  # what was asked for in between changed nothing


def test_overwriting_is_asked_of_the_steps_that_changed_and_of_those_after_them(complete):
    found = commands(complete, "SET=masks.candidates=3", "OVERWRITE=1")

    assert [*found] == [*ROUND_1[1:], *ROUND_2, "evaluate-round-2"]
    assert all(command.endswith(" --overwrite-changed") for command in found.values())


def test_a_comment_in_the_recipe_and_a_tracker_change_nothing(tmp_path):
    recipe, run = tmp_path / "mine.yaml", tmp_path / "run"
    shutil.copy(ROOT / "stages" / "recipes" / "digits.yaml", recipe)
    given = (f"RECIPE={recipe}", "DATA=data/digits")
    for command in commands(run, *given).values():
        write_step(command)
    recipe.write_text("# a remark\n" + recipe.read_text())

    assert would_run(run, *given) == []
    assert would_run(run, *given, "SET=tracking.trackers=[jsonl]") == []


def test_weights_that_were_deleted_to_make_room_are_not_made_again(complete):
    (complete / "1-sft-repair" / "optimizer.safetensors").unlink()
    (complete / "2-rl-repair" / "model" / "model.safetensors").unlink()
    shutil.rmtree(complete / "round-2" / "train-policy" / "model")

    assert make(complete, dry=False).stdout == "make: Nothing to be done for 'all'.\n"


def test_a_damaged_output_is_named_and_made_again_when_that_is_asked_for(complete):
    shard = complete / "round-1" / "rollout" / "rollouts-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])

    assert f"{shard}: {shard.stat().st_size} bytes instead of " in make(complete, dry=False).stderr
    assert would_run(complete, "OVERWRITE=1")[:2] == ROUND_1[:2]


def test_an_unfinished_step_goes_on(complete):
    (complete / "round-2" / "train-policy" / MANIFEST).unlink()
    found = commands(complete)

    assert [*found] == ["round-2/train-policy", "evaluate-round-2"]
    assert "--overwrite" not in " ".join(found.values())


@pytest.mark.parametrize("in_recipe", [False, True])
def test_siblings_need_no_repair_model(tmp_path, in_recipe):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("masks:\n  repairer: sibling\n" if in_recipe else "seed: 1\n")
    options = [f"RECIPE={recipe}", *([] if in_recipe else ["SET=masks.repairer=sibling"])]
    assert would_run(tmp_path / "run", *options) == ORDER[2:]
    assert "--repair-model" not in make(tmp_path / "run", *options).stdout


@pytest.mark.parametrize(
    ("written", "siblings"),
    [
        ('masks: {"repairer": "sibling"}', True),
        ("masks:\n  # repairer: sibling\n  candidates: 3", False),
        ("masks:\n  repairer: sibling\n", True),
    ],
)
def test_who_repairs_is_what_the_recipe_says_however_it_is_written(written, siblings, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(written)
    assert would_run(tmp_path / "run", f"RECIPE={recipe}") == (ORDER[2:] if siblings else ORDER)
    if siblings:
        assert would_run(tmp_path / "run", f"RECIPE={recipe}", "SET=masks.repairer=model") == ORDER


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ([], ["DATA=", "BASE="]),
        (["BASE=org/model"], ["DATA="]),
        (["DATA={mine}"], ["BASE="]),
        (["DATA={mine}", "BASE=org/model"], []),
    ],
)
def test_a_recipe_of_ones_own_does_not_train_the_examples_model(given, missing, tmp_path):
    recipe = "qwen2.5-vl-7b-gspo" if given else tmp_path / "my.yaml"
    (tmp_path / "my.yaml").write_text("seed: 1\n")
    given = [text.format(mine=tmp_path) for text in given]
    done = make(tmp_path / "run", f"RECIPE={recipe}", *given, dry=not missing)

    asked = [name for name in ("DATA=", "BASE=") if f" {name}" in done.stderr]
    assert asked == missing
    assert (done.returncode, "df " in done.stdout) == ((2, False) if missing else (0, True))
    assert f"make: RECIPE={recipe}: give" in done.stderr or not missing


def test_a_base_that_is_not_there_is_asked_for(tmp_path):
    assert " BASE=" in make(tmp_path / "run", f"DATA={tmp_path}", dry=False).stderr


@pytest.mark.parametrize("made", ["{0}.parquet", "{0}/{0}.parquet", "{0}/{0}-00000.parquet"])
def test_a_folder_of_data_may_hold_files_or_what_a_command_wrote(made, tmp_path):
    for name in ("problems_train", "problems_test", "repair_set"):
        file = tmp_path / made.format(name)
        file.parent.mkdir(exist_ok=True)
        file.touch()
    found = commands(tmp_path / "run", f"DATA={tmp_path}", "BASE=org/model")

    ending = ".parquet" if "/" not in made else ""
    assert f"--repair-set {tmp_path}/repair_set{ending} " in found["1-sft-repair"]
    assert f"--problems {tmp_path}/problems_train{ending} " in found["round-1/rollout"]
    assert f"--problems {tmp_path}/problems_test{ending} " in found["evaluate-base"]


def test_values_in_set_may_hold_spaces_and_quotes(tmp_path):
    values = ["trainer.lora={rank: 16, alpha: 32}", "prompt.instruction=It's # 1, x = 2", "seed=3"]
    command = commands(tmp_path / "run", f"SET={' '.join(values)}")["round-1/rollout"]

    words = shlex.split(command)
    assert [after for word, after in pairwise(words) if word == "--set"] == values


def test_a_wrong_setting_is_told_before_anything_runs(tmp_path):
    done = make(tmp_path / "run", "SET=rollout.temprature=1", dry=False)

    assert done.returncode == 2
    assert "error: --set rollout.temprature=1: no field rollout.temprature; the nearest is " in done.stderr
    assert "df " not in done.stdout


def test_what_is_to_do_is_found_without_torch(complete):
    code = (
        "import runpy, sys\ntry: runpy.run_module('df_cli.make_rules', run_name='__main__')\n"
        "finally: assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    data = "data/digits/"
    options = f"--rounds 3 --seed 0 --recipe digits --policy {data}base --repair-set {data}repair_set.parquet"
    problems = f"--problems {data}problems_train.parquet --test {data}problems_test.parquet"
    command = [sys.executable, "-c", code, str(complete), *options.split(), *problems.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    again = re.findall(rf"^{re.escape(str(complete))}/(\S+): again ", done.stdout, flags=re.MULTILINE)
    assert len(again) == 4 + 2  # steps, then the summary and the page


def test_shipped_recipes_run_in_folders_of_their_own():
    names = [recipe.stem for recipe in (ROOT / "stages" / "recipes").glob("*.yaml")]
    command = ["make", "--dry-run", "clean"]
    folders = {subprocess.check_output([*command, f"RECIPE={name}"], cwd=ROOT, text=True) for name in names}
    assert len(folders) == len(names) >= 4


@pytest.mark.parametrize("base", sorted(ROOT.glob("data/*/base")), ids=lambda base: base.parent.name)
def test_an_embedded_example_needs_the_name_of_its_recipe_alone(base, tmp_path):
    found = commands(tmp_path / "run", f"RECIPE={base.parent.name}")
    data = base.parent.relative_to(ROOT)
    assert f"--repair-set {data}/repair_set.parquet --policy {data}/base " in found["1-sft-repair"]
    assert f"--problems {data}/problems_train.parquet " in found["round-1/rollout"]
    assert f"--problems {data}/problems_test.parquet " in found["evaluate-base"]


def test_a_study_is_tuned_on_the_examples_validation_problems(tmp_path):
    run = tmp_path / "run"
    done = make(run, "RECIPE=long_digits", "VARIANTS=grpo difference", "SET=rollout.problems=64", target="study")
    words = shlex.split(done.stdout)
    options = [(option, value) for option, value in pairwise(words) if option.startswith("--")]
    assert ("--validation", "data/long_digits/problems_validation.parquet") in options
    assert ("--out", f"{run}-study") in options
    assert [value for option, value in options if option == "--variant"] == ["grpo", "difference"]
    assert [value for option, value in options if option == "--set"] == [
        "ablate.variants=rivals", "ablate.baseline=grpo", "rollout.problems=64",
    ]  # fmt: skip
    assert "--validation" not in make(run, target="ablate").stdout


def test_a_loop_comes_after_the_repair_model(tmp_path):
    run, rounds = tmp_path / "run", "ROUNDS=300"
    done = make(run, rounds, "VALIDATION=README.md", "STOP_AFTER=2h", "SAVE_EVERY=5", target="loop")
    assert done.returncode == 0, done.stderr
    flat = done.stdout.replace("\\\n", " ")
    told = [" ".join(line.split()) for line in flat.splitlines() if "/df " in line]
    assert [re.search(r"df (\S+)", line)[1] for line in told] == ["sft-repair", "rl-repair", "loop"]
    assert all(line.endswith("--stop-after 2h --save-every 5") for line in told)
    loop = told[-1]
    for words in (
        f"--repair-model {run}-loop/2-rl-repair",
        f"--out {run}-loop",
        "--rounds 300",
        "--validation README.md",
    ):
        assert f" {words} " in loop


def test_a_loop_goes_on_from_its_repair_model_and_overwrites_none_unasked(tmp_path):
    run = tmp_path / "run"
    for line in make(run, target="loop").stdout.splitlines()[:2]:
        write_step(line.partition("/df ")[2])
    told = make(run, target="loop").stdout
    assert "-repair --" not in told
    assert "df loop " in told

    done = make(run, "SET=sft.epochs=9", target="loop", dry=False)
    assert done.returncode == 2
    assert f"{run}-loop/1-sft-repair: made with other recipe.sft.epochs\n" in done.stderr
    assert "make: nothing is overwritten without OVERWRITE=1; or take another RUN" in done.stderr
    assert "df " not in done.stdout


def test_a_loop_of_siblings_has_no_repair_model(tmp_path):
    done = make(tmp_path / "run", "SET=masks.repairer=sibling", target="loop")
    told = [line for line in done.stdout.splitlines() if "/df " in line]
    assert len(told) == 1
    assert "--repair-model" not in told[0]


@pytest.fixture
def clone(tmp_path) -> Path:
    """The checkout without its environment, and `python3` that makes one without the network: the packages are those of
    this process, and `df`, like pip, does nothing."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("Makefile", "df_cli", "stages", "data", "pyproject.toml", "uv.lock"):
        (clone / name).symlink_to(ROOT / name)
    python = clone / "python3"
    python.write_text(
        f"""#!/bin/sh
        mkdir -p $3/bin
        for tool in pip uv df; do ln -sf {shutil.which("true")} $3/bin/$tool; done
        printf '#!/bin/sh\\nexec {sys.executable} "$@"' > $3/bin/python
        chmod +x $3/bin/python
        """
    )
    python.chmod(0o755)
    return clone


def test_the_first_make_installs_and_then_runs_every_step(clone):
    options = (f"PYTHON={clone / 'python3'}", "-j3")
    asked = make(clone / "run", *options, at=clone)
    assert (asked.returncode, asked.stdout.count("pip install"), asked.stdout.count("df ")) == (0, 2, 0)
    assert "make: the steps are known once .venv is there\n" in asked.stdout
    assert not (clone / ".venv").exists()

    done = make(clone / "run", *options, dry=False, at=clone)
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("touch .venv/installed\n")
    assert before.startswith("make all: digits takes some ten minutes on two cores; first it installs into .venv: ")
    assert before.count("pip install") == 2
    assert re.findall(rf"^\S+/df .* --out {clone}/run/(\S+)", after, flags=re.MULTILINE) == ORDER
    assert "make all:" not in after


def test_an_environment_of_other_versions_is_brought_up_to_date_first(clone):
    options = (f"PYTHON={clone / 'python3'}", "SET=rollout.temprature=1")
    make(clone / "run", *options, dry=False, at=clone)
    os.utime(clone / ".venv" / "installed", (0, 0))

    done = make(clone / "run", *options, dry=False, at=clone)
    assert done.returncode == 2
    assert done.stdout.endswith("touch .venv/installed\n")
    assert "df " not in done.stdout


@pytest.mark.parametrize("target", ["all", "loop", "ablate", "study"])
def test_limits_reach_every_command_that_takes_them(target, tmp_path):
    done = make(tmp_path / "run", "STOP_AFTER=90s", "SAVE_EVERY=5", target=target)
    lines = re.findall(r"^\S+/df (.+)$", done.stdout.replace("\\\n", " "), flags=re.MULTILINE)
    taken = [
        {name: given[name] for name in ("stop_after", "save_every") if name in given} for _, given in map(read, lines)
    ]
    assert {"stop_after": 90, "save_every": 5} in taken
    assert all(given.items() <= {"stop_after": 90, "save_every": 5}.items() for given in taken)
