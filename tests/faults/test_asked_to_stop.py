"""Signals and time limits: what is under way is finished and saved, and the same command goes on."""

import json
import os
import re
import signal

import pytest

import doomed
from df_cli.options import seconds
from doomed import Point, Trace, last_line
from interrupted import content
from stages.artifacts.step import CHECKPOINTS, PROGRESS, TRACKING
from stages.runtime.interruption import Requests

pytestmark = pytest.mark.timeout(600)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stage",
    ["rollout", *(pytest.param(stage, marks=SLOW) for stage in ("repair-set sheet", "rl-repair", "train-policy"))],
)
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=SLOW)])
def test_a_stage_that_is_asked_to_stop_saves_and_goes_on(stage, number, exit_code, references, tmp_path):
    reference, out = references[stage], tmp_path / "out"
    first_note = Point(reference.record.index(f"finish {PROGRESS}"), "after")

    assert finished(reference.command.start(out, first_note, number)) == exit_code
    assert last_line(out) == (
        f"{out}: stopped ({number.name}), what was done is saved; give the same command again to go on"
    )
    reference.check_resumed(out, number.name)


@SLOW
def test_a_time_limit_stops_as_often_as_it_takes(references, tmp_path):
    reference, out = references["train-policy"], tmp_path / "out"
    saved = []
    while (exit_code := finished_late(reference.command, out)) != 0:
        assert exit_code == 75
        assert "stopped (--stop-after, 1 s), what was done is saved" in last_line(out)
        saved.append(int(json.loads((out / PROGRESS).read_text())["checkpoint"]))

    assert saved
    assert saved == sorted(set(saved))  # every start got on
    assert content(out) == content(reference.out)


@pytest.mark.parametrize("stage", [pytest.param("repair-set sheet", marks=SLOW), "evaluate"])
def test_a_time_limit_that_passes_stops_at_the_next_shard(stage, references, tmp_path):
    reference, out = references[stage], tmp_path / "out"
    assert finished_late(reference.command, out) == 75
    assert "stopped (--stop-after, 1 s), what was done is saved" in last_line(out)

    reference.check_resumed(out, "--stop-after")


def finished_late(command, out):
    """The exit code of a command that stands still, once it has begun its folder, until a limit of a second is over."""
    return doomed.finished_late(command.with_options("--stop-after", "1s").process(out), out)


def finished(process):
    process.join()
    return process.exitcode


@SLOW
def test_sigusr1_saves_and_the_run_goes_on(references, tmp_path):
    reference, out = references["train-policy"], tmp_path / "out"
    first_step = Point(reference.record.index(f"open {TRACKING}/metrics.jsonl"), "before")
    process = reference.command.with_options("--save-every", "1000").start(out, first_step, signal.SIGUSR1)
    assert finished(process) == 0
    saved = {line for line in Trace.of(out).record if re.fullmatch(rf"os.mkdir {CHECKPOINTS}/[^/]+", line)}
    assert saved == {f"os.mkdir {CHECKPOINTS}/000000"}
    assert content(out) == content(reference.out)


def test_a_signal_is_noted_once_and_acts_the_second_time():
    requests, before = Requests(), signal.getsignal(signal.SIGINT)
    with requests.heard():
        assert (requests.to_stop(), requests.to_save()) == (None, False)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (requests.to_save(), requests.to_save()) == (True, False)
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.to_stop() == ("SIGINT", 130)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("text", "expected"), [("3h30m", 12600), ("45m", 2700), ("1d12h", 129600), ("90s", 90), ("2h5s", 7205)]
)
def test_durations(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "3", "0s", "30m3h", "3 h", "-1h", "1.5h", "٣h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(Exception, match="is no duration; write it like 3h30m"):
        seconds(text)
