"""Trackers: what they wrote is read back with their own readers."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stages.errors import RecipeError
from stages.recipe import Recipe, load_recipe
from stages.sections import TrackingSection
from stages.training.metrics import MetricsLog
from stages.training.tracking import check_trackers, open_trackers
from wandb_files import finished_records, items_of

CONFIG = {
    "model": {"dtype": "float32", "min_pixels": None},
    "prompt": {"references": ["answer", "sibling"]},
    "train": {"objective": {"algorithm": "gspo"}, "epochs": 2},
}
ROWS = [
    (1, {"loss": 0.5, "ratio_mean/error": 1.25}),
    (1, {"reward": -0.75}),
    (2, {"loss": 0.25, "ratio_mean/error": 1.5}),
]
VALUES = [(step, name, value) for step, metrics in ROWS for name, value in metrics.items()]


@pytest.fixture
def log_rows(tmp_path):
    """A function that logs `ROWS` with these trackers and gives the folder they write to."""

    def run(*names):
        with open_trackers(TrackingSection(trackers=names), tmp_path, CONFIG) as trackers:
            log = MetricsLog(trackers)
            for step, metrics in ROWS:
                log.add(step, metrics)
        assert [(row["step"], row["metric"], row["value"]) for row in log.rows] == VALUES
        return tmp_path / "tracking"

    return run


def json_lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_no_tracker_writes_nothing(log_rows, tmp_path):
    log_rows()
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_trackers_keeps_its_rows():
    log = MetricsLog()
    log.add(3, {"loss": 1.0})
    assert list(log.rows) == [{"step": 3, "metric": "loss", "value": 1.0}]


def test_json_lines_are_one_a_log(log_rows):
    folder = log_rows("jsonl")
    assert json_lines(folder / "metrics.jsonl") == [{"step": step} | metrics for step, metrics in ROWS]


def test_json_lines_are_there_while_training_runs(tmp_path):
    with open_trackers(TrackingSection(trackers=["jsonl"]), tmp_path, CONFIG) as trackers:
        trackers.log(1, {"loss": 0.5})
        assert json_lines(tmp_path / "tracking" / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]


def test_tensorboard_reads_the_scalars_and_the_recipe(log_rows):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    folder = log_rows("tensorboard") / "tensorboard"
    events = EventAccumulator(str(folder)).Reload()
    found = [(event.step, tag, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    assert sorted(found) == sorted(VALUES)

    (content,) = [
        HParamsPluginData.FromString(data)
        for tag, data in events.PluginTagToContent("hparams").items()
        if tag.endswith("session_start_info")
    ]
    shown = {
        name: value.string_value or value.number_value for name, value in content.session_start_info.hparams.items()
    }
    assert shown == {
        "model.dtype": "float32",
        "prompt.references": '["answer", "sibling"]',
        "train.objective.algorithm": "gspo",
        "train.epochs": 2,
    }
    assert [path for path in folder.iterdir() if path.is_dir()] == []  # each would be a run of its own


@pytest.mark.usefixtures("offline_wandb")
def test_wandb_offline_writes_history_recipe_and_project(log_rows):
    (file,) = log_rows("wandb").glob("wandb/offline-run-*/*.wandb")
    records = finished_records(file)
    history = [items_of(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
    names = {"loss", "ratio_mean/error", "reward"}
    assert [{name: row[name] for name in row.keys() & names} for row in history] == [
        ROWS[0][1] | ROWS[1][1],
        ROWS[2][1],
    ]
    assert [row["_step"] for row in history] == [1, 2]
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert run.project == "difference-feedback"
    config = {}
    for record in records:
        config |= items_of(record.config.update)
    assert config == {
        "model.dtype": "float32",
        "model.min_pixels": None,
        "prompt.references": '["answer", "sibling"]',
        "train.objective.algorithm": "gspo",
        "train.epochs": 2,
    }


def test_several_trackers_write_at_once_and_a_repeated_name_counts_once(log_rows):
    folder = log_rows("jsonl", "tensorboard", "tensorboard")
    assert len(json_lines(folder / "metrics.jsonl")) == len(ROWS)
    assert len(list((folder / "tensorboard").glob("events*"))) == 1


def test_a_new_start_replaces_what_a_stopped_one_wrote(log_rows):
    before = log_rows("jsonl", "tensorboard")
    (before / "tensorboard" / "old").write_text("")
    folder = log_rows("tensorboard")
    assert [path.name for path in folder.iterdir()] == ["tensorboard"]
    assert len(list((folder / "tensorboard").glob("events*"))) == 1
    assert not (folder / "tensorboard" / "old").exists()


def test_trackers_close_when_training_fails(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        open_trackers(TrackingSection(trackers=["jsonl"]), tmp_path, CONFIG) as trackers,
    ):
        trackers.log(1, {"loss": 1 / 0})
    with pytest.raises(ValueError, match="closed file"):
        trackers.log(1, {"loss": 1.0})


@pytest.mark.parametrize("package", ["tensorboard", "wandb", pytest.param("trackio", marks=pytest.mark.trackio)])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    section = TrackingSection(trackers=["jsonl", package])
    check_trackers(section)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RecipeError, match=rf"^tracking\.trackers: {package} .*pip install '\.\[{package}\]'"):
        check_trackers(section)
    check_trackers(TrackingSection(trackers=["jsonl"]))


def test_a_folder_that_wandb_left_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert importlib.util.find_spec("wandb") is not None
    with pytest.raises(RecipeError, match="wandb is not installed"):
        check_trackers(TrackingSection(trackers=["wandb"]))


@pytest.mark.usefixtures("offline_wandb")
def test_wandb_without_a_login_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115, closed with the process
    no_login = pytest.raises(RecipeError, match=r"^tracking\.trackers: wandb did not start .*WANDB_MODE=offline")
    with no_login, open_trackers(TrackingSection(trackers=["wandb"]), tmp_path, CONFIG):
        pass


@pytest.mark.slow
def test_only_the_main_process_writes(tmp_path):
    code = (
        "import sys; from pathlib import Path; from stages.recipe import TrackingSection\n"
        "from stages.training.tracking import open_trackers; from accelerate import PartialState\n"
        "rank = PartialState(cpu=True).process_index\n"
        "section = TrackingSection(trackers=['jsonl', 'tensorboard'])\n"
        "with open_trackers(section, Path(sys.argv[1]) / str(rank), {}) as trackers:\n"
        "    trackers.log(1, {'loss': 1.0})\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert json_lines(tmp_path / "0" / "tracking" / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_the_recipe_names_trackers_and_project():
    assert Recipe().tracking.trackers == []
    recipe = load_recipe("digits", ["tracking.trackers=[jsonl, wandb]", "tracking.project=mine"])
    assert (recipe.tracking.trackers, recipe.tracking.project) == (["jsonl", "wandb"], "mine")
    with pytest.raises(RecipeError, match=r"tracking\.trackers\.0 is 'mlflow'"):
        load_recipe("digits", ["tracking.trackers=[mlflow]"])
    with pytest.raises(RecipeError, match=r"tracking\.project is 'a/b'"):
        load_recipe("digits", ["tracking.project=a/b"])
