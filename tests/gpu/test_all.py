"""The GPU's script, on this machine: every part at tiny dimensions, and parts that end in every way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GPU = Path(__file__).parent
sys.path.insert(0, str(GPU))

from measured import Line  # noqa: E402, beside this file
from odd_parts import PARTS  # noqa: E402
from running import Ended, run  # noqa: E402

ODD = [sys.executable, str(GPU / "odd_parts.py")]


def script(*options):
    root = GPU.parents[1]
    command = [sys.executable, str(GPU / "all.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})


def test_each_part_tells_how_it_ended_and_the_rest_goes_on(capfd):
    told = list(run(ODD, PARTS, 240))

    ends = {end.part: end for end in told if isinstance(end, Ended)}
    assert list(ends) == list(PARTS)
    assert [end.part for end in ends.values() if not end.why] == ["whole", "whole too"]
    assert ends["too large"].why.startswith("does not fit: needs 1099511627776.0 GiB of ")
    assert ends["no longer"].why == "failed (1): in two lines"
    assert "ValueError: what is wrong" in capfd.readouterr().err
    assert ends["too long"].why == "cut off: its time was over"
    assert [end.part for end in ends.values() if end.broken] == ["no longer", "too long"]
    assert sum(isinstance(line, Line) for line in told) == 4  # what a part had before its end, too


def test_what_has_no_time_is_not_run():
    assert [(end.part, end.why) for end in run(ODD, PARTS, 0)] == [
        (name, "not run: no time was left") for name in PARTS
    ]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line():
    done = script()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("no CUDA GPU here")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_runs_at_tiny_dimensions(tmp_path):
    done = script("--tiny", "--seconds", 1500, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    report = json.loads((tmp_path / "gpu.json").read_text())
    assert {part["why"] for part in report["parts"].values()} == {""}
    assert {line["part"] for line in report["lines"] if line["holds"]} >= {"float32", "bfloat16"}
    for side in ("TRL", "unpadded row", "prefix grouping", "ours, gates off", "ours, gates on"):
        (seconds,) = [line["value"] for line in report["lines"] if line["what"] == f"{side}: a step"][:1]
        assert seconds > 0
