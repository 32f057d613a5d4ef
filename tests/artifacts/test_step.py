"""A step's folder: complete once its manifest exists, never overwritten unasked, resumed at the first missing shard."""

import hashlib
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

import stages.artifacts.step as step_module
from forked import server
from stages.artifacts.bad_rows import BadRow
from stages.artifacts.columns import DROPPED, METRICS
from stages.artifacts.fingerprint import fingerprint
from stages.artifacts.ledger import CostLedger
from stages.artifacts.manifests import MANIFEST, PLAN, model_folder, read_manifest
from stages.artifacts.stage import execute
from stages.artifacts.step import CHECKPOINTS, NOTED_AT_ONCE, PENDING, PROGRESS, SETTLED, Plan, Step
from stages.artifacts.store import iterate_rows
from stages.artifacts.writing import PARTIAL
from stages.errors import ArtifactError
from stages.runtime.interruption import Requests, Stopped

ROWS = [{"step": 1, "metric": "loss", "value": 0.5}]
LOST = [{"problem_id": "p", "reason": "text_only_solvable"}]


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "input.txt"
    file.write_bytes(b"first")
    return file


def plan(source, *, seed=1, temperature=0.7, step="rollout"):
    return Plan(step, {"rollout": {"temperature": temperature, "problems": None}}, seed, {"problems": source})


def write_shard(step, index):
    step.tally.rows_in += 2
    step.tally.rows_out += 1
    step.tally.dropped["unscored"] += 1
    step.tally.counts["correct"] += 3
    step.ledger.device_seconds["generate"] += 10.0
    step.write_shards(index, {METRICS: ROWS})


def complete(out, a_plan, shards=1):
    step = Step.open(out, a_plan)
    for index in range(shards):
        write_shard(step, index)
    step.finish()
    return step


def listing(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class OneShard:
    """The smallest stage."""

    def __init__(self, source):
        self.inputs = {"problems": source}
        self.runs = 0

    def plan(self):
        return plan(self.inputs["problems"])

    def run(self, step):
        self.runs += 1
        write_shard(step, 0)
        step.finish()


def test_the_manifest_comes_last(tmp_path, source):
    step = Step.open(tmp_path / "out", plan(source))
    write_shard(step, 0)
    assert listing(tmp_path / "out").keys() == {PLAN, PROGRESS, "metrics-00000.parquet"}
    with pytest.raises(ArtifactError, match=r"out: no manifest\.json, .* not complete; run its command again"):
        read_manifest(tmp_path / "out")

    step.finish()

    assert listing(tmp_path / "out").keys() == {PLAN, MANIFEST, "metrics-00000.parquet"}
    assert read_manifest(tmp_path / "out") == step.manifest


def test_the_manifest_says_what_was_done(tmp_path, source):
    step = Step.open(tmp_path / "out", plan(source), ledger=CostLedger(4))
    write_shard(step, 0)
    step.finish()
    manifest = step.manifest

    assert manifest["schema_version"] == 2
    assert manifest["step"] == "rollout"
    assert manifest["recipe"] == {"rollout": {"temperature": 0.7, "problems": None}}
    assert manifest["seed"] == 1
    assert manifest["inputs"] == {"problems": {"path": str(source), "sha256": hashlib.sha256(b"first").hexdigest()}}
    assert (manifest["rows_in"], manifest["rows_out"], manifest["dropped"]) == (2, 1, {"unscored": 1})
    assert manifest["counts"] == {"correct": 3}
    assert manifest["devices"] == 4
    assert manifest["device_seconds"].keys() == {"generate", "other"}
    assert manifest["device_seconds"]["generate"] == 10.0
    assert {"torch", "transformers", "rapidfuzz"} <= manifest["versions"].keys()


def test_the_manifests_checksums_are_the_files(tmp_path, source):
    out = tmp_path / "out"
    step = Step.open(out, plan(source))
    write_shard(step, 0)
    step.write_table(DROPPED, LOST)
    (out / "model").mkdir()
    (out / "model" / PLAN).write_text("a model's own file of that name")
    step.finish()
    files = step.manifest["files"]

    assert files.keys() == {"metrics-00000.parquet", "dropped.parquet", f"model/{PLAN}"}
    for name, entry in files.items():
        content = (out / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_dropped_problem_is_counted_and_listed_after_a_resume_too(tmp_path, source):
    out = tmp_path / "out"
    stopped = Step.open(out, plan(source))
    stopped.drop("p0", "text_only_solvable")
    write_shard(stopped, 0)
    stopped.drop("p1", "lost with the shard that was not finished")
    resumed = Step.open(out, plan(source))
    resumed.drop("p2", "image_undecodable", "p2 image 0: no bytes; embed the image")
    resumed.finish()

    assert resumed.manifest["dropped"] == {"unscored": 1, "text_only_solvable": 1, "image_undecodable": 1}
    assert list(iterate_rows(out / "dropped.parquet", DROPPED)) == [
        {"problem_id": "p0", "reason": "text_only_solvable", "detail": None},
        {"problem_id": "p2", "reason": "image_undecodable", "detail": "p2 image 0: no bytes; embed the image"},
    ]


def test_rows_that_the_plan_drops_are_counted_once_however_often_it_is_resumed(tmp_path, source):
    out = tmp_path / "out"
    dropping = replace(plan(source), dropped=[BadRow("p0", "null_answer", "row 0: answer is null")])
    Step.open(out, dropping)
    write_shard(Step.open(out, dropping), 0)
    step = Step.open(out, dropping)
    step.finish()

    assert step.manifest["dropped"] == {"null_answer": 1, "unscored": 1}
    (row,) = iterate_rows(out / "dropped.parquet", DROPPED)
    assert row == {"problem_id": "p0", "reason": "null_answer", "detail": "row 0: answer is null"}
    with pytest.raises(ArtifactError, match=r"out: made with other dropped; give --overwrite"):
        Step.open(out, plan(source))


def test_what_an_interrupted_write_left_is_not_output(tmp_path, source):
    out = tmp_path / "out"
    step = Step.open(out, plan(source))
    write_shard(step, 0)
    (out / (MANIFEST + PARTIAL)).write_text("{")

    step.finish()
    assert step.manifest["files"].keys() == {"metrics-00000.parquet"}


def test_a_complete_step_with_the_same_plan_is_left_alone(tmp_path, source):
    complete(tmp_path / "out", plan(source))
    before = listing(tmp_path / "out")
    again = Step.open(tmp_path / "out", plan(source))

    assert again.manifest == read_manifest(tmp_path / "out")
    assert listing(tmp_path / "out") == before


def test_a_stage_runs_once_and_a_dry_run_touches_nothing(tmp_path, source):
    stage, out = OneShard(source), tmp_path / "out"
    planned = execute(stage, out, dry_run=True)
    assert (planned.ran, planned.manifest, out.exists()) == (False, None, False)

    first, second = execute(stage, out), execute(stage, out)

    assert (first.ran, second.ran, stage.runs) == (True, False, 1)
    assert first.plan == second.plan == planned.plan
    assert first.manifest == second.manifest


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"temperature": 0.8}, "recipe.rollout.temperature"),
        ({"seed": 2}, "seed"),
        ({"step": "evaluate"}, "step"),
        ({"seed": 2, "temperature": 0.8}, "recipe.rollout.temperature, seed"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_exactly_the_changed_fields_are_named(changes, names, finished, tmp_path, source):
    step = Step.open(tmp_path / "out", plan(source))
    write_shard(step, 0)
    if finished:
        step.finish()
    before = listing(tmp_path / "out")
    with pytest.raises(ArtifactError, match=f"out: made with other {names}; give --overwrite .* or another --out"):
        Step.open(tmp_path / "out", plan(source, **changes))

    assert listing(tmp_path / "out") == before


def test_changed_input_bytes_are_named(tmp_path, source):
    complete(tmp_path / "out", plan(source))
    source.write_bytes(b"second")
    with pytest.raises(ArtifactError, match=r"made with other inputs\.problems; "):
        Step.open(tmp_path / "out", plan(source))


def test_further_and_missing_inputs_are_named(tmp_path, source):
    complete(tmp_path / "out", plan(source))
    other = Plan("rollout", plan(source).recipe, 1, {"policy": source})
    with pytest.raises(ArtifactError, match=r"made with other inputs\.policy, inputs\.problems; "):
        Step.open(tmp_path / "out", other)


def test_an_input_that_moved_is_the_same_input(tmp_path, source):
    complete(tmp_path / "out", plan(source))
    moved = source.rename(tmp_path / "elsewhere.txt")

    assert Step.open(tmp_path / "out", plan(moved)).manifest is not None


@pytest.mark.parametrize("changes", [{}, {"seed": 2}])
def test_overwrite_replaces_a_complete_output(changes, tmp_path, source):
    out = tmp_path / "out"
    step = complete(out, plan(source), shards=2)
    (out / "model").mkdir()
    (out / "model" / "config.json").write_text("{}")
    step.finish()
    again = Step.open(out, plan(source, **changes), overwrite=True)

    assert again.manifest is None
    assert not again.has_shard(METRICS, 0)
    assert listing(out).keys() == {PLAN}
    assert Step.open(out, plan(source, **changes)).manifest is None


def test_overwrite_replaces_a_stopped_run_of_another_plan(tmp_path, source):
    write_shard(Step.open(tmp_path / "out", plan(source)), 0)
    again = Step.open(tmp_path / "out", plan(source, seed=2), overwrite=True)

    assert not again.has_shard(METRICS, 0)
    assert again.tally.rows_in == 0
    assert listing(tmp_path / "out").keys() == {PLAN}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stopped_run_goes_on_with_its_tallies_and_costs(overwrite, tmp_path, source):
    stopped = Step.open(tmp_path / "out", plan(source))
    write_shard(stopped, 0)
    write_shard(stopped, 1)

    step = Step.open(tmp_path / "out", plan(source), overwrite=overwrite)
    assert [step.has_shard(METRICS, index) for index in range(3)] == [True, True, False]
    write_shard(step, 2)
    step.finish()
    manifest = step.manifest

    assert (manifest["rows_in"], manifest["rows_out"]) == (6, 3)
    assert (manifest["dropped"], manifest["counts"]) == ({"unscored": 3}, {"correct": 9})
    assert manifest["device_seconds"].keys() == {"generate", "other"}
    assert manifest["device_seconds"]["generate"] == 30.0
    assert len(list(iterate_rows(tmp_path / "out", METRICS))) == 3


def test_a_shard_without_a_note_is_written_again_and_counted_once(tmp_path, source):
    stopped = Step.open(tmp_path / "out", plan(source))
    write_shard(stopped, 0)
    noted = (tmp_path / "out" / PROGRESS).read_bytes()
    write_shard(stopped, 1)
    (tmp_path / "out" / PROGRESS).write_bytes(noted)  # as it was before the second shard

    step = Step.open(tmp_path / "out", plan(source))
    assert not step.has_shard(METRICS, 1)
    write_shard(step, 1)

    step.finish()
    assert step.manifest["rows_in"] == 4


def test_a_noted_shard_gets_its_name_when_the_step_goes_on(tmp_path, source):
    out = tmp_path / "out"
    stopped = Step.open(out, plan(source))
    write_shard(stopped, 0)
    shard = out / "metrics-00000.parquet"
    content = shard.read_bytes()
    shard.rename(out / (shard.name + PENDING))  # killed between its note and its rename

    step = Step.open(out, plan(source))
    assert step.has_shard(METRICS, 0)
    assert shard.read_bytes() == content
    assert not (out / (shard.name + PENDING)).exists()


def test_a_shard_that_nobody_noted_does_not_count(tmp_path, source):
    out = tmp_path / "out"
    (first := Step.open(out, plan(source))).write_shards(0, {METRICS: ROWS})
    whole = (out / "metrics-00000.parquet").read_bytes()
    (out / f"metrics-00001.parquet{PENDING}").write_bytes(whole)
    step = Step.open(out, plan(source))

    assert step.has_shard(METRICS, 0)
    assert not step.has_shard(METRICS, 1)
    step.finish()
    assert step.manifest["files"].keys() == {"metrics-00000.parquet"}
    assert first.plan == step.plan


DAMAGES = {
    "gone": (lambda file: file.unlink(), "missing"),
    "changed": (lambda file: file.write_bytes(bytes(len(file.read_bytes()))), "changed since it was written"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-1]), r"\d+ bytes instead of \d+"),
}


@pytest.mark.parametrize("name", ["metrics-00000.parquet", f"{CHECKPOINTS}/000001/weights/part"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_stopped_step_noted_and_is_not_as_it_was_is_named(damage, name, tmp_path, source):
    out = tmp_path / "out"
    stopped = Step.open(out, plan(source))
    for index in range(2):
        write_shard(stopped, index)
        stopped.save_checkpoint(write_weights)
    spoil, told = DAMAGES[damage]
    spoil(out / name)
    with pytest.raises(ArtifactError, match=f"{name}: {told}; give --overwrite to start the step again$"):
        Step.open(out, plan(source))

    step = Step.open(out, plan(source), overwrite=True)
    assert not step.has_shard(METRICS, 1)
    assert (step.checkpoint, step.tally.rows_in) == (None, 0)


@pytest.mark.parametrize("spoil", [lambda text: text[:-9], lambda _: "", lambda _: "[]", lambda t: t.replace("1", "2")])
def test_a_note_of_progress_that_is_not_as_it_was_is_named(spoil, tmp_path, source):
    write_shard(Step.open(tmp_path / "out", plan(source)), 0)
    note = tmp_path / "out" / PROGRESS
    note.write_text(spoil(note.read_text()))
    with pytest.raises(ArtifactError, match=r"progress\.json: changed since it was written; give --overwrite to start"):
        Step.open(tmp_path / "out", plan(source))

    assert not Step.open(tmp_path / "out", plan(source), overwrite=True).has_shard(METRICS, 0)


@pytest.fixture
def settles_each(monkeypatch):
    """Two files are many."""
    monkeypatch.setattr(step_module, "NOTED_AT_ONCE", 2)


def pieces(out):
    return sorted(file.name for file in (out / SETTLED).iterdir())


def test_a_note_of_progress_does_not_grow_with_the_shards(tmp_path, source):
    step, lengths = Step.open(tmp_path / "out", plan(source)), []
    for index in range(3 * NOTED_AT_ONCE):
        write_shard(step, index)
        lengths.append((tmp_path / "out" / PROGRESS).stat().st_size)
    assert max(lengths) < max(lengths[:NOTED_AT_ONCE]) + 100
    assert pieces(tmp_path / "out") == ["000000.json", "000001.json"]


@pytest.mark.usefixtures("settles_each")
def test_a_step_of_many_shards_goes_on_with_all_of_them(tmp_path, source):
    out = tmp_path / "out"
    for first in range(0, 9, 3):  # stopped after every third
        step = Step.open(out, plan(source))
        assert [step.has_shard(METRICS, index) for index in range(9)] == [True] * first + [False] * (9 - first)
        for index in range(first, first + 3):
            write_shard(step, index)
    assert len(pieces(out)) == 4
    step = Step.open(out, plan(source))
    assert len(list(iterate_rows(out, METRICS))) == 9

    step.finish()
    assert (step.manifest["rows_in"], step.manifest["rows_out"]) == (18, 9)
    assert step.manifest["files"].keys() == {f"metrics-{index:05d}.parquet" for index in range(9)}
    assert listing(out).keys() == {PLAN, MANIFEST, *step.manifest["files"]}


@pytest.mark.usefixtures("settles_each")
def test_a_step_killed_where_a_piece_of_its_notes_was_written_goes_on(tmp_path, source):
    out = tmp_path / "out"
    step = Step.open(out, plan(source))
    for index in range(2):
        write_shard(step, index)
    before = (out / PROGRESS).read_bytes()
    write_shard(step, 2)
    (out / PROGRESS).write_bytes(before)  # killed after the piece, before the note that counts it
    (out / "metrics-00002.parquet").rename(out / f"metrics-00002.parquet{PENDING}")

    step = Step.open(out, plan(source))
    assert [step.has_shard(METRICS, index) for index in range(3)] == [True, True, False]
    for index in (2, 3):
        write_shard(step, index)
        shard = out / f"metrics-{index:05d}.parquet"
        shard.rename(out / (shard.name + PENDING))  # killed between its note and its rename
        step = Step.open(out, plan(source))
        assert step.has_shard(METRICS, index)
    step.finish()
    assert step.manifest["rows_in"] == 8


@pytest.mark.usefixtures("settles_each")
@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_text(file.read_text().replace("1", "2"))])
def test_a_piece_of_the_notes_that_is_not_as_it_was_is_named(spoil, tmp_path, source):
    step = Step.open(tmp_path / "out", plan(source))
    for index in range(5):
        write_shard(step, index)
    spoil(tmp_path / "out" / SETTLED / "000001.json")
    with pytest.raises(ArtifactError, match=rf"{SETTLED}/000001\.json: changed since it was written; give --overwrite"):
        Step.open(tmp_path / "out", plan(source))

    assert not Step.open(tmp_path / "out", plan(source), overwrite=True).has_shard(METRICS, 0)


@pytest.mark.usefixtures("settles_each")
def test_shards_in_a_piece_of_the_notes_are_work(tmp_path, source):
    step = Step.open(tmp_path / "out", plan(source))
    for index in range(2):
        write_shard(step, index)
    step.write_shards(2, {METRICS: []})
    with pytest.raises(ArtifactError, match="made with other seed"):
        Step.open(tmp_path / "out", plan(source, seed=2))


def write_weights(folder):
    (folder / "weights").mkdir()
    (folder / "weights" / "part").write_text("0.25")


def test_a_checkpoint_takes_the_place_of_the_last_one(tmp_path, source):
    out = tmp_path / "out"
    step = Step.open(out, plan(source))
    assert step.checkpoint is None
    for number in range(2):
        step.tally.counts["steps"] = number
        step.save_checkpoint(lambda folder, number=number: (folder / "weights").write_text(str(number)))
    step.tally.counts["steps"] = 99

    again = Step.open(out, plan(source))
    assert (again.checkpoint / "weights").read_text() == "1"
    assert again.tally.counts["steps"] == 1
    assert len(list((out / CHECKPOINTS).iterdir())) == 1
    again.finish()
    assert again.manifest["files"] == {}
    assert listing(out).keys() == {PLAN, MANIFEST}


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path, source):
    step = Step.open(tmp_path / "out", plan(source))
    step.save_checkpoint(lambda folder: (folder / "weights").write_text("first"))
    with pytest.raises(KeyboardInterrupt):
        step.save_checkpoint(interrupted_write)
    again = Step.open(tmp_path / "out", plan(source))
    assert (again.checkpoint / "weights").read_text() == "first"

    again.save_checkpoint(lambda folder: (folder / "others").write_text("second"))
    assert [file.name for file in again.checkpoint.iterdir()] == ["others"]


def interrupted_write(folder):
    (folder / "weights").write_text("sec")
    raise KeyboardInterrupt


def test_what_a_step_goes_on_from_is_gone_when_it_is_complete(tmp_path, source):
    out = tmp_path / "out"
    step = Step.open(out, plan(source))
    write_shard(step, 0)
    step.save_checkpoint(lambda folder: (folder / "weights").touch())
    progress = (out / PROGRESS).read_bytes()
    step.finish()
    (out / PROGRESS).write_bytes(progress)  # killed right after the manifest
    (out / CHECKPOINTS / "000000").mkdir(parents=True)

    assert execute(OneShard(source), out).ran is False
    assert listing(out).keys() == {PLAN, MANIFEST, "metrics-00000.parquet"}
    assert not (out / CHECKPOINTS).exists()


def write_shard_after_shard(out, told):
    """For ever."""
    step = Step.open(out, Plan("rollout", {}, 0, {}))
    for index in itertools.count():
        if not step.has_shard(METRICS, index):
            step.tally.rows_in += 1
            step.write_shards(index, {METRICS: [{"step": index, "metric": "m", "value": 0.0}] * 50})
        told.send(index)


def test_a_killed_process_goes_on_where_it_was(tmp_path):
    """SIGKILL at whatever instant: every noted shard is readable and tallied once."""
    for after in (3, 7, 12):
        heard, told = server().Pipe(duplex=False)
        process = server().Process(target=write_shard_after_shard, args=(tmp_path / "out", told))
        process.start()
        while heard.recv() < after:
            pass
        time.sleep(0.003)
        process.kill()
        process.join()
    step = Step.open(tmp_path / "out", Plan("rollout", {}, 0, {}))
    progress = json.loads((tmp_path / "out" / PROGRESS).read_text())

    assert len(progress["files"]) > 12
    assert step.tally.rows_in == len(progress["files"])
    for index, name in enumerate(sorted(progress["files"])):
        assert {row["step"] for row in iterate_rows(tmp_path / "out" / name, METRICS)} == {index}


@pytest.mark.parametrize("finished", [False, True])
def test_a_step_that_lost_its_plan_is_told_from_other_folders(finished, tmp_path, source):
    step = Step.open(tmp_path / "out", plan(source))
    write_shard(step, 0)
    if finished:
        step.finish()
    (step.out / PLAN).unlink()
    before = listing(step.out)
    with pytest.raises(ArtifactError, match=r"out: its plan\.json is gone; name another with --out"):
        Step.open(step.out, plan(source), overwrite=True)
    assert listing(step.out) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", PLAN, MANIFEST])
def test_a_folder_not_made_by_df_survives(overwrite, name, tmp_path, source):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"weeks": 12}')
    with pytest.raises(ArtifactError, match="out: not an empty folder and not made by df; name another with --out"):
        Step.open(out, plan(source), overwrite=overwrite)

    assert listing(out) == {name: b'{"weeks": 12}'}


def test_an_output_that_is_a_file_is_refused(source):
    with pytest.raises(ArtifactError, match="not an empty folder"):
        Step.open(source, plan(source.with_name("other")), overwrite=True)

    assert source.read_bytes() == b"first"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_folder_that_holds_an_input_is_refused(overwrite, tmp_path, source):
    out = tmp_path / "out"
    complete(out, plan(source))
    before = listing(out)
    for inside in (out, out / "metrics-00000.parquet"):
        with pytest.raises(ArtifactError, match=r"out: problems .* lies in the output folder; name another with --out"):
            Step.open(out, plan(inside), overwrite=overwrite)

    assert listing(out) == before


def test_a_step_that_was_stopped_counts_the_device_seconds_of_before(tmp_path, source):
    """Those that no phase has, too: three seconds before the stop and five after it."""
    now = 0.0

    def opened():
        return Step.open(tmp_path / "out", plan(source), ledger=CostLedger(clock=lambda: now))

    first = opened()
    first.requests = Requests(stop_after_s=0)
    now += 3
    with pytest.raises(Stopped):
        write_shard(first, 0)
    second = opened()
    now += 5
    second.finish()
    assert second.manifest["device_seconds"] == {"generate": 10.0, "other": 8.0}


def test_a_steps_fingerprint_ignores_its_timings(tmp_path, source):
    first, second = complete(tmp_path / "first", plan(source)), Step.open(tmp_path / "second", plan(source))
    write_shard(second, 0)
    second.ledger.device_seconds["load"] = 99.0
    second.finish()

    assert first.manifest["device_seconds"] != second.manifest["device_seconds"]
    assert fingerprint(tmp_path / "first") == fingerprint(tmp_path / "second")
    second.write_table(DROPPED, LOST)
    second.finish()
    assert fingerprint(tmp_path / "first") != fingerprint(tmp_path / "second")


def test_a_checkpoints_fingerprint_is_its_files(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"w")
    (second / "README.md").write_text("a note does not change a model")
    assert fingerprint(first) == fingerprint(second)

    (second / "model.safetensors").write_bytes(b"v")
    assert fingerprint(first) != fingerprint(second)


def test_a_hub_name_is_its_own_fingerprint():
    assert fingerprint(Path("org/model")) == "org/model"


def test_the_model_of_a_training_step_is_in_it(tmp_path, source):
    complete(tmp_path / "out", plan(source))

    assert model_folder(tmp_path / "out") == tmp_path / "out" / "model"
    assert model_folder(tmp_path / "checkpoint") == tmp_path / "checkpoint"
    assert model_folder(Path("org/model")) == Path("org/model")


def test_the_model_of_an_incomplete_step_is_refused(tmp_path, source):
    Step.open(tmp_path / "out", plan(source))
    with pytest.raises(ArtifactError, match=r"out: no manifest\.json, so this step is not complete"):
        model_folder(tmp_path / "out")


def test_a_stopped_overwrite_does_not_look_complete(tmp_path, source, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    complete(out, plan(source))
    (out / "model").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Step.open(out, plan(source), overwrite=True)
    step = Step.open(out, plan(source))

    assert (out / "model").exists()
    assert step.manifest is None
    assert not step.has_shard(METRICS, 0)
