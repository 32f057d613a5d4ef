"""`df loop`: the artifacts of the commands, byte for byte, from models that stay open."""

import gc
import itertools
import json
import logging
import math
import re
import shutil
import signal
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from safetensors import safe_open
from timeless import timeless, timeless_manifest
from torch import nn
from typer.testing import CliRunner

from df_cli.loop import _line
from df_cli.main import app
from doomed import Point, Trace, finished, finished_late, last_line, run
from forked import df_pair, server
from stages.artifacts.columns import METRICS, PROBLEMS, SCORES
from stages.artifacts.manifests import read_manifest
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows, write_rows
from stages.chain import Chain
from stages.engines.loading import open_model
from stages.errors import ArtifactError, DataError
from stages.evaluate import Evaluate
from stages.loop import Loop, RoundResult
from stages.measures.accuracy import Measure
from stages.recipe import load_recipe
from stages.run_folder import last_evaluated
from stages.runtime.interruption import Requests, Stopped
from stages.s2_rl_repair import RlRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s5_train_policy import TrainPolicy
from stages.summary import summarize_run
from stages.training import resident
from stages.training.trainer import Trainer

SMALL = [
    "rollout.problems=8",
    "rollout.samples_per_problem=4",
    "rollout.rows_per_shard=16",
    "train.problems_per_step=3",
    "evaluate.draws=1",
    "evaluate.image_removed=false",
]
REPAIR_RL = ["repair_rl.problems=8", "repair_rl.iterations=1", "repair_rl.errors_per_iteration=4"]
MOVING = ["train.objective.kl_coef=0.1", "train.kl_reference=previous"]
PPO = ["train.objective.algorithm=ppo", "masks.on_no_correct=repair"]
STAGES = {"rollout": Rollout, "build-masks": BuildMasks, "train-policy": TrainPolicy, "evaluate": Evaluate}


@pytest.fixture(scope="module")
def validation(tmp_path_factory, digits):
    file = tmp_path_factory.mktemp("validation") / "problems.parquet"
    rows = list(iterate_rows(digits / "problems_test.parquet", PROBLEMS))[:10]
    write_rows(file, PROBLEMS, rows)
    return file


@pytest.fixture(scope="module")
def loop_of(digits, base_dir, validation):
    def make(out, *settings, rounds=2, repair_model=base_dir, validation=validation, **others):
        recipe = load_recipe("digits", [*SMALL, *settings])
        problems = digits / "problems_train.parquet"
        return Loop(recipe, problems, base_dir, repair_model, out, rounds, validation, **others)

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory, loop_of):
    """The output of two rounds that nothing stopped; the records of what was done lie beside it."""
    loop = loop_of(tmp_path_factory.mktemp("whole") / "run")
    assert finished(life(loop)) == 0, last_line(loop.out)
    return loop.out


def options_of(loop):
    """The command line of a loop."""
    given = {"--problems": loop.problems, "--policy": loop.policy, "--repair-model": loop.repair_model}
    given |= {"--validation": loop.validation, "--rounds": loop.rounds, "--out": loop.out, "--recipe": "digits"}
    words = [str(word) for pair in given.items() if pair[1] is not None for word in pair]
    return ["loop", *words, *(word for setting in SMALL for word in ("--set", setting))]


def life(loop, *options, death=None, number=signal.SIGKILL):
    """A process that does the loop, which gets this signal at its `death`; not yet started."""
    return server().Process(target=run, args=([*options_of(loop), *options], loop.out, death, number, False))


def by_commands(loop, out):
    """The steps of the loop, each with models that it opens itself."""

    def make(place, command, seed, /, **inputs):
        stage = STAGES[command](loop.recipe.model_copy(update={"seed": seed}), **inputs)
        return execute(stage, out / place).out

    chain = Chain(make, loop.problems, loop.policy, None, loop.recipe.seed)
    chain.scores("validation-base", loop.policy, loop.validation)
    for number, made in enumerate(chain.rounds(loop.rounds, loop.policy, loop.repair_model), start=1):
        chain.scores(f"validation-round-{number}", made.policy, loop.validation)


def contents(run):
    """Of each step, by its place: its manifest, with the hashes of its files, and its metrics, but for what tells of
    the machine, of where the run lies, and of who gave the recipe."""
    found = {}
    for file in sorted(run.rglob("manifest.json")):
        step = file.parent
        manifest = timeless_manifest(file) | {"phases": set(read_manifest(step)["device_seconds"])}
        manifest.pop("origin", None)
        for given in manifest["inputs"].values():
            given["path"] = re.sub(r".*/(?=round-)", "", given["path"])
        metrics = step / "metrics.parquet"
        found[str(step.relative_to(run))] = manifest, timeless(metrics) if metrics.exists() else None
    return found


def test_a_loop_writes_what_the_commands_write(tmp_path, loop_of, whole):
    by_commands(loop_of(tmp_path), tmp_path)
    ours, theirs = contents(whole), contents(tmp_path)
    assert len(theirs) == 9
    assert ours == theirs


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            ["model.dtype=bfloat16"],
            id="bfloat16: sampler, scorer and trainer compute in three ways",
            marks=pytest.mark.slow,
        ),
        pytest.param(["trainer.lora={rank: 2, alpha: 4}"], id="adapters", marks=pytest.mark.slow),
        pytest.param(["trainer.lora={rank: 2, bits: 4}"], id="four bits", marks=pytest.mark.slow),
        pytest.param(PPO, id="critic", marks=pytest.mark.slow),
        pytest.param(["train.objective.kl_coef=0.1"], id="reference", marks=pytest.mark.slow),
        pytest.param(MOVING, id="moving reference", marks=pytest.mark.slow),
    ],
)
def test_it_does_so_under_other_settings(tmp_path, loop_of, settings, monkeypatch):
    """In folders of one name: adapters note the model's path."""
    run, theirs_in = Path("run"), tmp_path / "commands"
    loop = loop_of(run, *settings, "loop.keep_rounds=9")
    monkeypatch.chdir(tmp_path)
    results = list(loop.run())
    theirs_in.mkdir()
    monkeypatch.chdir(theirs_in)
    by_commands(loop, run)
    ours, theirs = contents(tmp_path / run), contents(theirs_in / run)
    assert len(theirs) == 9
    assert ours == theirs
    assert [result.number for result in results] == [0, 1, 2]


def written(run):
    """When each step was."""
    return {str(file.relative_to(run)): file.stat().st_mtime_ns for file in run.rglob("manifest.json")}


def test_the_commands_go_on_with_a_loop_and_the_loop_with_them(tmp_path, loop_of, whole):
    """The first round of a loop, the other by the commands; a loop over all of that finds nothing to do."""
    out = tmp_path / "run"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("*round-2", "best"))
    first = written(out)
    assert len(first) == 5
    by_commands(loop_of(out), out)
    both = written(out)
    assert len(both) == 9
    assert both | first == both
    assert contents(out) == contents(whole)
    list(loop_of(out).run())
    assert written(out) == both


@pytest.mark.slow
def test_a_tracker_sees_one_run(tmp_path, loop_of):
    """Of a loop's round and the commands' that goes on."""
    out, tracker = tmp_path / "run", "tracking.trackers=[jsonl]"
    list(loop_of(out, tracker, rounds=1).run())
    by_commands(loop_of(out, tracker), out)
    losses = [
        row["value"]
        for number in (1, 2)
        for row in iterate_rows(out / f"round-{number}" / "train-policy" / "metrics.parquet", METRICS)
        if row["metric"] == "loss"
    ]
    lines = [json.loads(line) for line in (out / "tracking" / "metrics.jsonl").read_text().splitlines()]
    told = [(line["step"], line["train-policy/loss"]) for line in lines]
    assert told == list(enumerate(losses, start=1))
    assert not list(out.glob("round-*/*/tracking"))


def test_asked_to_stop_in_a_round_it_says_so_and_goes_on_there(tmp_path, loop_of, whole):
    """By a signal behind a shard of the first round, then by a limit that is over before there is another."""
    stopped = loop_of(tmp_path / "stopped")
    out = stopped.out
    shard = Point("finish round-1/rollout/progress.json", "after")
    assert finished(life(stopped, death=shard, number=signal.SIGTERM)) == 143
    saved = "what was done is saved; give the same command again to go on"
    assert last_line(out) == f"{out}/round-1/rollout: stopped (SIGTERM), {saved}"
    assert finished_late(life(stopped, "--stop-after", "1s"), out) == 75
    assert last_line(out) == f"{out}: stopped (--stop-after, 1 s), {saved}"
    assert finished(life(stopped)) == 0, last_line(out)
    assert contents(out) == contents(whole)


def test_resumed_in_training_it_opens_the_new_policy_no_second_time(tmp_path, loop_of, whole, monkeypatch):
    """What was trained is sampled from, though no engine was open when training began."""
    out = tmp_path / "run"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("*round-2", "validation-round-1", "best", "train-policy"))
    opened = []

    def noted(path, *arguments, **options):
        opened.append(path)
        return open_model(path, *arguments, **options)

    monkeypatch.setattr(resident, "open_model", noted)
    list(loop_of(out).run())
    assert contents(out) == contents(whole)
    assert out / "round-1/train-policy" not in opened


@contextmanager
def accuracies(*values):
    """Validations that find these sampled accuracies, one a policy."""
    from stages import loop as module

    found = iter(values)
    measured = module.iterate_rows

    def rows(*arguments):
        value = next(found)
        return [
            row | ({"value": value} if row["measure"] == "sampled accuracy" else {}) for row in measured(*arguments)
        ]

    with patch.object(module, "iterate_rows", rows):
        yield


def weights(out):
    """Steps whose model is there."""
    return sorted(str(file.parents[1].relative_to(out)) for file in out.rglob("model/*.safetensors"))


@pytest.fixture(scope="module")
def patient(tmp_path_factory, loop_of):
    """What a loop told, and where it lies, that keeps one round and waits for two without a better policy."""
    out = tmp_path_factory.mktemp("patient") / "run"
    with accuracies(0.5, 0.6, math.nextafter(0.6, 1), 0.4):
        return list(loop_of(out, "loop.keep_rounds=1", "loop.patience=2", rounds=9).run()), out


def test_weights_of_the_last_rounds_and_of_the_best_are_kept(patient):
    results, out = patient
    assert weights(out) == ["round-1/train-policy", "round-3/train-policy"]
    assert [result.is_best for result in results] == [True, True, False, False]
    assert (out / "best").readlink() == Path("round-1/train-policy")
    assert open_model(out / "best", load_recipe("digits")).model is not None
    gone = read_manifest(out / "round-2/train-policy")["files"]
    assert not any((out / "round-2/train-policy" / name).exists() for name in gone if name.endswith("safetensors"))
    assert {file.name for file in (out / "round-2").glob("*/*.parquet")} >= {
        "rollouts-00000.parquet",
        "groups-00000.parquet",
    }


def test_it_ends_when_nothing_was_better_for_so_long(patient):
    """What differs in its last digit is as good."""
    results, _ = patient
    assert [result.number for result in results] == [0, 1, 2, 3]


def test_it_says_why_it_ended_early(patient, loop_of):
    _, out = patient
    with accuracies(0.5, 0.6, math.nextafter(0.6, 1), 0.4):
        told = df(loop_of(out, rounds=9), "--set", "loop.keep_rounds=1", "--set", "loop.patience=2").splitlines()
    assert told[-3].startswith("round 3/9; ")
    assert told[-2] == "ended early: 2 validations one after the other found no better policy"
    assert told[-1].startswith("best: round 1, sampled 0.600 ")


def test_what_was_validated_once_counts_though_it_is_no_longer_due(loop_of, whole):
    """The last round of an earlier start, or one of a smaller `validate_every`; and no time is told of it."""
    results = list(loop_of(whole, "loop.validate_every=2").run())
    assert [(result.number, bool(result.accuracy), result.seconds) for result in results] == [
        (0, True, 0.0),
        (1, True, 0.0),
        (2, True, 0.0),
    ]
    assert "; made before" in _line(results[1], rounds=300)
    assert " left" not in _line(results[1], rounds=300)


def test_another_recipe_is_refused_with_what_to_do(loop_of, whole):
    before = written(whole)
    with pytest.raises(ArtifactError) as refused:
        list(loop_of(whole, "train.optimizer.learning_rate=1e-3").run())
    assert str(refused.value) == (
        f"{whole}/round-1/train-policy: made with other recipe.train.optimizer.learning_rate; a loop has one recipe "
        "and one set of inputs from first round to last: give those, or another --out"
    )
    assert written(whole) == before


@pytest.fixture(scope="module")
def trained_again(tmp_path_factory, loop_of):
    """A loop of two rounds whose repair model is trained between them."""
    out = tmp_path_factory.mktemp("again") / "run"
    loop = loop_of(out, *REPAIR_RL, "loop.repair_rl_every=1", validation=None)
    list(loop.run())
    return loop


def test_the_repair_model_is_trained_again(trained_again, base_dir):
    out = trained_again.out
    trained = read_manifest(out / "round-1/rl-repair")["inputs"]
    assert trained["policy"]["path"] == str(out / "round-1/train-policy")
    assert trained["repair_model"]["path"] == str(base_dir)
    used = [read_manifest(out / f"round-{n}/build-masks")["inputs"]["repair_model"]["path"] for n in (1, 2)]
    assert used == [str(base_dir), str(out / "round-1/rl-repair")]
    assert not (out / "round-2/rl-repair").exists()


def test_it_is_trained_as_its_command_trains_it_and_used_from_then_on(trained_again, tmp_path, base_dir):
    out = trained_again.out

    def made(stage, place, number, **inputs):
        recipe = trained_again.recipe.model_copy(update={"seed": number})
        return execute(stage(recipe, problems=trained_again.problems, **inputs), tmp_path / place).out

    policy = out / "round-1/train-policy"
    repair_model = made(RlRepair, "round-1/rl-repair", 1, policy=policy, repair_model=base_dir)
    rollouts = out / "round-2/rollout"
    made(BuildMasks, "round-2/build-masks", 2, rollouts=rollouts, repair_model=repair_model, policy=policy)
    ours, theirs = contents(out), contents(tmp_path)
    assert theirs == {place: ours[place] for place in ("round-1/rl-repair", "round-2/build-masks")}


def test_its_summary_is_of_its_validations(tmp_path, whole):
    """Its repair model, which it did not train, is in no cost and no measure."""
    run = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    found = {(m.section, m.measure): m.value for m in summarize_run(run, last_evaluated(run))}
    for policy, place in (("base policy", "validation-base"), ("final policy", "validation-round-2")):
        rewards = [row["reward"] for row in iterate_rows(run / place, SCORES) if row["mode"] == "greedy"]
        assert found[policy, "greedy accuracy"] == pytest.approx(sum(rewards) / len(rewards))
    costs = Counter()
    for file in (*run.glob("round-*/*/manifest.json"), *run.glob("validation-*/manifest.json")):
        manifest = read_manifest(file.parent)
        costs[manifest["step"]] += sum(manifest["device_seconds"].values())
    assert {name: value for (section, name), value in found.items() if section == "device-seconds"} == pytest.approx(
        costs
    )


def test_a_repair_model_that_was_replaced_keeps_its_rows_alone(trained_again, tmp_path):
    """Stopped behind it, and over all that is complete, the loop goes on without."""
    out = tmp_path / "run"
    shutil.copytree(trained_again.out, out)

    class InTheThirdRound(Requests):
        def to_stop(self):
            return ("SIGTERM", 143) if (out / "round-3/rollout/manifest.json").exists() else None

    going_on = replace(trained_again, out=out, rounds=3)
    with pytest.raises(Stopped):
        list(replace(going_on, requests=InTheThirdRound()).run())
    assert weights(out) == ["round-1/train-policy", "round-2/rl-repair", "round-2/train-policy"]
    left = {file.name for file in (out / "round-1/rl-repair").rglob("*") if file.is_file()}
    assert "episodes.parquet" in left
    assert not {name for name in left if name.endswith("safetensors")}
    list(going_on.run())
    used = read_manifest(out / "round-3/build-masks")["inputs"]["repair_model"]["path"]
    assert used == str(out / "round-2/rl-repair")
    complete = written(out)
    list(going_on.run())
    assert written(out) == complete


IN_ROUND_1 = (
    Point("finish round-1/rollout/progress.json", "after"),  # its first shard is noted
    Point("finish round-1/build-masks/progress.json", "before"),  # a shard is whole and not noted
    Point("finish round-1/train-policy/progress.json", "after"),  # between two optimizer steps
    Point("finish validation-round-1/progress.json", "before"),
)


def noted(trace, death):
    """What a process did up to its last note, of a shard, a checkpoint or a step: to the folder, and costly work."""
    done = trace.record[:-1] if death.moment == "before" else trace.record  # the last change did not come to be
    notes = [i for i, line in enumerate(done) if re.fullmatch(r"finish \S+/(progress|manifest).json", line)]
    end = max(notes, default=-1) + 1
    return done[:end], [piece for before, piece in trace.work if before < end]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_again_and_again_it_does_nothing_again_that_was_finished(tmp_path, loop_of, whole):
    """In each step of a round, then wherever it is after so many changes to the folder, seven more in each life."""
    killed = loop_of(tmp_path / "killed")
    checkpoints, work, complete = Counter(), Counter(), {}
    anywhere = (Point(changes, "before") for changes in itertools.count(30, 7))
    for lives, death in enumerate(itertools.chain(IN_ROUND_1, anywhere), start=1):
        exit_code = finished(life(killed, "--save-every", "1", death=death))
        done, pieces = noted(Trace.of(killed.out), death)
        checkpoints.update({line for line in done if re.fullmatch(r"os.mkdir \S+/checkpoints/\d+", line)})
        work.update(pieces)
        assert written(killed.out) | complete == written(killed.out), death
        complete = written(killed.out)
        if exit_code != -signal.SIGKILL:
            break
        if lives <= len(IN_ROUND_1):
            assert f"{Path(death.entry.split()[1]).parent}/manifest.json" not in complete
    assert exit_code == 0, last_line(killed.out)
    assert lives >= len(IN_ROUND_1) + 2
    assert set(checkpoints.values()) == {1}
    assert work == Counter(piece for _, piece in Trace.of(whole).work)
    assert contents(killed.out) == contents(whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_do_a_loop_together(tmp_path, loop_of):
    """The model that both train is no engine's: the next round reads it from its files."""
    loop = loop_of(tmp_path / "run")
    done = df_pair(*options_of(loop))
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line.split(";")[0] for line in done.stdout.splitlines()]
    assert told[1:4] == ["round 0/2", "round 1/2", "round 2/2"]
    assert len(told) == 5  # one process speaks
    devices = {read_manifest(file.parent)["devices"] for file in loop.out.rglob("manifest.json")}
    assert devices == {2}


@pytest.mark.parametrize(("anchor", "is_far"), [("start", True), ("previous", False)])
def test_a_kl_term_compares_with_the_policy_of_the_start(tmp_path, loop_of, anchor, is_far):
    """The second round's first step, at unchanged weights: the distance to this round's policy is nothing."""
    settings = [f"train.kl_reference={anchor}", "train.objective.kl_coef=0.1", "train.optimizer.learning_rate=1e-3"]
    list(loop_of(tmp_path, *settings, validation=None).run())
    rows = iterate_rows(tmp_path / "round-2/train-policy/metrics.parquet", METRICS)
    first = next(row["value"] for row in rows if row["metric"] == "kl_ref")
    assert (first > 1e-3) == is_far
    inputs = read_manifest(tmp_path / "round-2/train-policy")["inputs"]
    assert ("reference" in inputs) == is_far


def df(loop, *options):
    done = CliRunner().invoke(app, [*options_of(loop), *options], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_a_dry_run_prints_the_plan_and_touches_nothing(tmp_path, loop_of):
    loop = loop_of(tmp_path / "run")
    told = json.loads(df(loop, "--dry-run", "--seed", "5", "--set", "loop.keep_rounds=3"))
    assert (told["step"], told["rounds"], told["seed"]) == ("loop", 2, 5)
    paths = {name: Path(entry["path"]) for name, entry in told["inputs"].items()}
    given = {"policy": loop.policy, "repair_model": loop.repair_model}
    assert paths == given | {"problems": loop.problems, "validation": loop.validation}
    assert told["recipe"]["engine"]["name"] == "transformers"
    assert told["recipe"]["loop"]["keep_rounds"] == 3
    assert told["estimate"] == loop_of(loop.out, "loop.keep_rounds=3").estimate().gib()
    assert list(tmp_path.iterdir()) == []


def test_it_begins_with_what_it_takes(loop_of, whole):
    """And goes over rounds that are there."""
    loop = loop_of(whole)
    told, estimate = df(loop).splitlines(), loop.estimate()
    disk = sum(estimate.disk().values()) / 2**30
    assert told[0].endswith(f" GiB of the host, {disk:.2f} GiB of disk (loop.keep_rounds is 2)")
    assert told[0].startswith(f"takes at most {estimate.gib()['device_gib']['at_most']:.2f} GiB of each device (in ")
    assert [line.partition(";")[0] for line in told[1:4]] == ["round 0/2", "round 1/2", "round 2/2"]


def test_it_says_at_once_that_nothing_is_validated(loop_of, whole):
    """Of rounds that were: nothing is measured, and no line has an accuracy."""
    note = "no --validation problems: no accuracy is measured, and no best/ kept"
    told = df(loop_of(whole, validation=None)).splitlines()
    assert told[1] == note
    assert [line.partition(";")[0] for line in told[2:]] == ["round 1/2", "round 2/2"]
    assert not any("sampled" in line for line in told)
    assert note not in df(loop_of(whole))


def test_the_line_of_a_round():
    """Of 40 rollouts 12 are wrong, of which 10 were given to the repair model; 3 rounds of 12 s are to come."""
    manifests = {
        "rollout": {"rows_out": 40, "counts": {"correct": 28}, "device_seconds": {"load": 1.0, "generate": 2.5}},
        "build-masks": {
            "counts": {"repair_triggered": 10, "errors_repaired": 8},
            "device_seconds": {"repair": 4.0},
        },
        "train-policy": {"device_seconds": {"score": 0.5, "train": 6.0}},
        "evaluate": {"device_seconds": {"generate": 0.2}},
    }
    accuracy = {
        "sampled": Measure("all", "sampled accuracy", 0.75, 0.6, 0.863, 10),
        "greedy": Measure("all", "greedy accuracy", 0.8),
    }
    assert _line(RoundResult(2, manifests, accuracy, True, 12.0), rounds=5) == (
        "round 2/5; sampled 0.750 [0.600, 0.863], greedy 0.800; 28 of 40 rollouts right; p (eq. 29) 0.250; "
        "8 of 10 errors repaired; device-seconds rollout 3.5, build-masks 4.0, train-policy 6.5, evaluate 0.2; 12.0 s, "
        "about 36 s left (best so far)"
    )


def test_a_dry_run_refuses_what_a_run_could_not_do(tmp_path, loop_of):
    loop = loop_of(tmp_path / "run")
    with pytest.raises(DataError, match="2400 of its problems stand in"):
        replace(loop, validation=loop.problems).plan()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([], id="float32"),
        pytest.param(["model.dtype=bfloat16"], id="bfloat16"),
        pytest.param(["trainer.lora={rank: 2, alpha: 4}"], id="adapters"),
        pytest.param(["train.objective.kl_coef=0.1"], id="reference"),
        pytest.param(MOVING, id="moving reference"),
    ],
)
def test_while_it_trains_it_holds_the_models_that_it_told(tmp_path, loop_of, base_dir, settings, monkeypatch, caplog):
    """All weights that are alive when a step trains, but for those of earlier tests."""
    caplog.set_level(logging.ERROR)  # a record that is kept may hold a traceback, and that the models of its frames
    repair_model = tmp_path / "repair model"
    shutil.copytree(base_dir, repair_model)

    def alive():
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, nn.Parameter)]

    before = alive()
    held = {}
    train = Trainer.step

    def step(trainer, *arguments):
        others = {id(one) for one in before}
        found = {one.data_ptr(): one.nbytes for one in alive() if id(one) not in others}
        held[trainer.section] = max(held.get(trainer.section, 0), sum(found.values()))
        return train(trainer, *arguments)

    monkeypatch.setattr(Trainer, "step", step)
    settings = [*REPAIR_RL, *settings, "loop.repair_rl_every=1"]
    loop = loop_of(tmp_path / "run", *settings, repair_model=repair_model, validation=None)
    list(loop.run())
    told = loop.estimate().on_device(1)
    sections = {"train-policy": loop.recipe.train.optimizer, "rl-repair": loop.recipe.repair_rl.optimizer}
    for name, section in sections.items():
        assert held[section] == sum(part["weights"] for part in told[name].rest.values()), name


@pytest.fixture
def told_beyond(tmp_path, loop_of, monkeypatch):
    """Whether a loop is refused a disk with a byte less than this, and only that one."""

    def check(need, *settings, **others):
        def with_free(space):
            usage = shutil.disk_usage(tmp_path)._replace(free=space)
            with monkeypatch.context() as patched:
                patched.setattr("shutil.disk_usage", lambda _path: usage)
                loop_of(tmp_path / "run", *settings, **others)._check_disk()

        with_free(need)
        with pytest.raises(ArtifactError, match=r"weights and optimizer states take 0\.\d GiB .* are free"):
            with_free(need - 1)

    return check


@pytest.fixture(scope="module")
def written_by_a_step(base_dir):
    """Bytes of weights and AdamW's two moments, in float32."""
    with safe_open(base_dir / "model.safetensors", "np") as file:
        elements = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return 3 * 4 * elements


@pytest.mark.parametrize(
    ("rounds", "others", "steps"),
    [
        pytest.param(9, {}, 2 + 1 + 1, id="two that are kept, the best, the one under way"),
        pytest.param(9, {"validation": None}, 2 + 1, id="no best"),
        pytest.param(1, {}, 1, id="the only one"),
    ],
)
def test_a_disk_without_room_for_the_weights_is_told_before_the_first_rollout(
    told_beyond, written_by_a_step, rounds, others, steps
):
    """Two checkpoints of the step under way come on top, of which the newer takes the older's place."""
    told_beyond((steps + 2) * written_by_a_step, rounds=rounds, **others)


@pytest.mark.parametrize(
    ("rounds", "steps"),
    [
        pytest.param(9, 4 + 1, id="beside the policies the one in use; or, with a policy less, the next one too"),
        pytest.param(3, 3 + 1, id="trained once"),
        pytest.param(2, 2, id="not after the last round"),
    ],
)
def test_repair_models_that_are_trained_again_take_room_too(told_beyond, written_by_a_step, rounds, steps):
    told_beyond((steps + 2) * written_by_a_step, "loop.repair_rl_every=2", rounds=rounds)


def test_weights_of_an_earlier_start_are_room(told_beyond, written_by_a_step, tmp_path):
    need = (1 + 2) * written_by_a_step
    for found, step in enumerate(("train-policy", "rl-repair"), start=1):
        weights = tmp_path / "run/round-1" / step / "model/model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"0")
        told_beyond(need - found, rounds=1)


def test_a_larger_repair_model_takes_most_while_it_is_trained(told_beyond, written_by_a_step, tmp_path, base_dir):
    """Three policies, the repair model in use, the next one and its checkpoints; of other sizes than the policy."""
    larger = tmp_path / "larger"
    shutil.copytree(base_dir, larger)
    config = json.loads((larger / "config.json").read_text())
    text = config["text_config"]
    text["num_hidden_layers"] += 1
    text["layer_types"] = [*text["layer_types"], text["layer_types"][-1]]
    (larger / "config.json").write_text(json.dumps(config))
    with safe_open(base_dir / "model.safetensors", "np") as file:
        layer = [name for name in file.keys() if ".layers.0." in name and "visual" not in name]  # noqa: SIM118
        added = sum(math.prod(file.get_slice(name).get_shape()) for name in layer)
    repairs = written_by_a_step + 3 * 4 * added
    told_beyond(3 * written_by_a_step + (2 + 2) * repairs, "loop.repair_rl_every=2", rounds=9, repair_model=larger)


def test_a_critic_and_prime_s_model_take_room_too(told_beyond, written_by_a_step, base_dir):
    """The critic is a weight for each element of the hidden state and a bias; PRIME's model is a second policy."""
    hidden = json.loads((base_dir / "config.json").read_text())["text_config"]["hidden_size"]
    told_beyond(6 * (written_by_a_step + 3 * 4 * (hidden + 1)), *PPO, rounds=9)
    told_beyond(6 * 2 * written_by_a_step, "train.gate=none", "train.advantage=prime", rounds=9)
