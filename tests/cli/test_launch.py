"""Commands in the two processes of one `accelerate launch`."""

import os
import subprocess
import sys

import pytest

from stages.artifacts.columns import ROLLOUTS
from stages.artifacts.step import read_manifest
from stages.artifacts.store import iterate_rows

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
# The launcher knows several processes on GPUs alone; the processes themselves know CPUs.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@pytest.fixture
def rollout(digits, base_dir):
    """A function: `df rollout` of seven problems in two processes."""

    def run(out):
        options = {"--problems": digits / "problems_train.parquet", "--policy": base_dir, "--out": out}
        settings = ["rollout.problems=7", "rollout.samples_per_problem=3", "rollout.rows_per_shard=12"]
        command = [*LAUNCH, "-m", "df_cli", "rollout", *(str(word) for pair in options.items() for word in pair)]
        command += [word for setting in settings for word in ("--set", setting)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)

    return run


def test_two_processes_share_a_step_and_one_of_them_writes(rollout, tmp_path):
    done = rollout(tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("rows out") == 1
    rows = list(iterate_rows(tmp_path / "out", ROLLOUTS))
    assert len({(row["problem_id"], row["sample"]) for row in rows}) == len(rows) == 21
    assert len({tuple(row["ids"]) for row in rows}) > 10
    assert all(row["reward"] in (0, 1) for row in rows)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["rows_in"], manifest["rows_out"], manifest["devices"]) == (7, 21, 2)
    assert "nothing to do" in rollout(tmp_path / "out").stdout


def test_an_error_of_the_main_process_ends_both(rollout, tmp_path):
    (tmp_path / "mine.txt").write_text("not df's")
    done = rollout(tmp_path)
    assert done.returncode != 0
    assert "not an empty folder and not made by df" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
