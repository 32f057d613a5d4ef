"""The training steps of a run are one run in each tracker: what their own readers find there, offline."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from stages.artifacts.columns import METRICS
from stages.artifacts.step import Plan, Step
from stages.sections import TrackingSection
from stages.training.metrics import MetricsLog
from stages.training.tracked_run import NOTE
from stages.training.tracking import open_trackers
from wandb_files import finished_records, items_of

STEPS = [("1-sft-repair", 1), ("2-rl-repair", 4), ("round-1/train-policy", 1), ("round-2/train-policy", 3)]
"""Training steps of a run, each of two optimizer steps, with the count that its trainer begins with."""
NAMES = ["sft-repair/loss", "rl-repair/loss", "train-policy/loss", "train-policy/loss"]
LOSSES = [0.5, 0.25, 0.75, 1.5, 2.5, 2.25, 1.25, 1.0]
VALUES = [(place + 1, NAMES[place // 2], loss) for place, loss in enumerate(LOSSES)]
PROJECT = "difference-feedback"


@pytest.fixture
def run(tmp_path):
    return tmp_path / "mine"


@pytest.fixture(scope="session")
def trackio(tmp_path_factory):
    """Reads where it keeps its data when it is imported, which nothing but these tests does."""
    os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))
    import trackio

    return trackio


def begun(run, place, seed=0):
    return Step.open(run / place, Plan(place, {}, seed, {}))


def train(run, number, trackers, *, stop_after=2, seed=0):
    """The step's two optimizer steps, or the first of them; it is complete when both were made."""
    place, count = STEPS[number]
    step = begun(run, place, seed)
    with open_trackers(TrackingSection(trackers=trackers), step.out, {"sft": {"epochs": 2}}) as opened:
        log = MetricsLog(opened)
        for made in range(stop_after):
            log.add(count + made, {"loss": LOSSES[2 * number + made]})
    if stop_after == 2:
        step.write_table(METRICS, log.rows)
        step.finish()


def train_all(run, trackers):
    for number in range(len(STEPS)):
        train(run, number, trackers)


def read_json_lines(run):
    lines = [json.loads(line) for line in (run / "tracking" / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], name, value) for line in lines for name, value in line.items() if name != "step"]


def read_tensorboard(run):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    found = EventMultiplexer().AddRunsFromDirectory(str(run)).Reload()
    (events,) = [found.GetAccumulator(name) for name in found.Runs()]
    return sorted((event.step, tag, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag))


READERS = {"jsonl": read_json_lines, "tensorboard": read_tensorboard}


@pytest.mark.parametrize("tracker", READERS)
def test_steps_and_rounds_are_one_run(tracker, run):
    train_all(run, [tracker])
    assert READERS[tracker](run) == VALUES
    assert not [*run.glob("*/tracking"), *run.glob("*/*/tracking")]


@pytest.mark.parametrize("tracker", READERS)
def test_a_stopped_step_writes_its_part_anew(tracker, run):
    for number in range(2):
        train(run, number, [tracker])
    train(run, 2, [tracker], stop_after=1)
    train(run, 2, [tracker])
    assert READERS[tracker](run) == VALUES[:6]


def test_a_line_that_a_kill_cut_off_is_no_line(run):
    train(run, 0, ["jsonl"])
    with (run / "tracking" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rl-re')
    train(run, 1, ["jsonl"])
    assert read_json_lines(run) == VALUES[:4]


def trackio_runs(trackio, run):
    """Of the run's folder by now, by name in trackio: what each was told."""
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for known in trackio.Api().runs(PROJECT):
        if known.name.startswith(f"{run.name}-"):
            rows = SQLiteStorage.get_logs(PROJECT, known.name)
            found[known.name] = [
                (row["step"], name, value) for row in rows for name, value in row.items() if name.endswith("/loss")
            ]
    return found


@pytest.mark.trackio
def test_trackio_has_one_run_and_goes_on_with_it(trackio, run, capsys):
    run = run.with_name("goes on")
    for number in range(2):
        train(run, number, ["trackio"])
    train(run, 2, ["trackio"], stop_after=1)
    train(run, 2, ["trackio"])
    train(run, 3, ["trackio"])
    ((name, told),) = trackio_runs(trackio, run).items()
    assert told == VALUES
    assert name == f"goes on-{json.loads((run / 'tracking' / NOTE).read_text())['id']}"
    assert capsys.readouterr().out == ""
    assert trackio.context_vars.current_run.get() is None  # which trackio would finish on stdout when Python ends
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_run_config(PROJECT, name)["sft.epochs"] == 2


@pytest.mark.trackio
def test_a_step_that_is_made_again_otherwise_begins_a_new_run(trackio, run):
    """What it was told of the old one stays as it is there."""
    run = run.with_name("otherwise")
    train(run, 0, ["trackio"], stop_after=1)
    (run / STEPS[0][0] / "plan.json").unlink()
    train(run, 0, ["trackio"], seed=1)
    assert sorted(trackio_runs(trackio, run).values(), key=len) == [VALUES[:1], VALUES[:2]]


@pytest.mark.usefixtures("offline_wandb")
def test_wandb_is_told_of_one_run(run):
    train_all(run, ["wandb"])
    known = json.loads((run / "tracking" / NOTE).read_text())["id"]
    told, runs = [], set()
    for file in run.glob("tracking/wandb/offline-run-*/*.wandb"):
        for record in finished_records(file):
            if record.WhichOneof("record_type") == "run":
                runs.add((record.run.run_id, record.run.display_name, record.run.project))
            row = items_of(record.history.item)
            told += [(row["_step"], name, value) for name, value in row.items() if name.endswith("/loss")]
    assert runs == {(known, "mine", PROJECT)}
    assert sorted(told) == VALUES


def test_a_command_alone_is_a_run_of_its_own(tmp_path):
    step = begun(tmp_path, "policies/mine")
    with open_trackers(TrackingSection(trackers=["jsonl"]), step.out, {}) as opened:
        opened.log(7, {"loss": 0.5})
    assert read_json_lines(step.out) == [(7, "loss", 0.5)]


SAMPLES = [
    {"pictures": Image.new("RGB", (9, 7), "red"), "error": "It is [-3-].", "error reward": 0.0},
    {"pictures": None, "error": "A text alone", "error reward": 0.5},
]


def show_samples(run, number, tracker, every):
    """One optimizer step of a round, with a table where it is due."""
    section = TrackingSection(trackers=[tracker], samples_every=every)
    step = begun(run, f"round-{number}/train-policy")
    with open_trackers(section, step.out, {}) as opened:
        log = MetricsLog(opened)
        log.add(number, {"loss": 0.5})
        if opened.shows_samples:
            opened.show_samples(SAMPLES)
    step.write_table(METRICS, log.rows)
    step.finish()


@pytest.mark.usefixtures("offline_wandb")
def test_wandb_has_a_table_of_samples_every_so_many_rounds(run):
    for number in (1, 2, 3):
        show_samples(run, number, "wandb", every=2)
    files = sorted((run / "tracking").glob("wandb/offline-run-*/files"))
    tables = [list(folder.glob("media/table/train-policy/*.json")) for folder in files]
    assert [len(found) for found in tables] == [1, 0, 1]
    table = json.loads(tables[0][0].read_text())
    assert table["columns"] == ["pictures", "error", "error reward"]
    assert table["data"] == [["Image", "It is [-3-].", 0.0], [None, "A text alone", 0.5]]
    staged = Path(os.environ["WANDB_DATA_DIR"]).glob("artifacts/staging/*")  # where wandb keeps a table's pictures
    pictures = [Image.open(file) for file in staged if file.read_bytes().startswith(b"\x89PNG")]
    assert [(picture.size, picture.getpixel((0, 0))) for picture in pictures] == [((9, 7), (255, 0, 0))] * 2


@pytest.mark.trackio
def test_trackio_has_a_table_of_samples(trackio, run):
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR

    run = run.with_name("samples")
    show_samples(run, 1, "trackio", every=5)
    show_samples(run, 2, "trackio", every=5)
    (name,) = [known.name for known in trackio.Api().runs(PROJECT) if known.name.startswith("samples-")]
    rows = SQLiteStorage.get_logs(PROJECT, name)
    (table,) = [row["train-policy/samples"]["_value"] for row in rows if "train-policy/samples" in row]
    assert [list(row) for row in table] == [["pictures", "error", "error reward"]] * 2
    assert [(row["error"], row["error reward"]) for row in table] == [("It is [-3-].", 0.0), ("A text alone", 0.5)]
    with Image.open(MEDIA_DIR / table[0]["pictures"]["file_path"]) as shown:
        assert shown.size == (9, 7)
    assert table[1]["pictures"] is None
