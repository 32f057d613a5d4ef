"""Commands in two processes of one node or of two, and by `accelerate launch` on one and on each of two."""

import os

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from forked import df_of_nodes, df_pair
from launching import launch, launch_nodes
from stages.artifacts.columns import GROUPS, METRICS, ROLLOUTS
from stages.artifacts.lock import lock_output
from stages.artifacts.manifests import read_manifest
from stages.artifacts.store import iterate_rows, write_rows


def launched(*arguments):
    return launch("-m", "df_cli", *arguments)


def launched_on_two_nodes(*arguments):
    return launch_nodes("-m", "df_cli", *arguments)


@pytest.fixture(params=[df_pair, pytest.param(df_of_nodes, marks=pytest.mark.slow)])
def df_twice(request):
    """A function: `df` in two processes."""
    return request.param


@pytest.fixture
def rollout(digits, base_dir, df_twice):
    """A function: `df rollout` of seven problems in two processes."""

    def run(out):
        options = {
            "--recipe": "digits",
            "--problems": digits / "problems_train.parquet",
            "--policy": base_dir,
            "--out": out,
        }
        settings = ["rollout.problems=7", "rollout.samples_per_problem=3", "rollout.rows_per_shard=12"]
        words = [word for pair in options.items() for word in pair]
        words += [word for setting in settings for word in ("--set", setting)]
        return df_twice("rollout", *words)

    return run


@pytest.mark.parametrize(
    "df_twice", [df_pair, pytest.param(launched_on_two_nodes, marks=pytest.mark.slow)], indirect=True
)
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


def test_both_processes_end_where_another_writes_the_folder(rollout, tmp_path):
    with lock_output(tmp_path / "out"):
        done = rollout(tmp_path / "out")
    assert done.returncode != 0
    assert f"out: process {os.getpid()} on " in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_pairs_are_realigned_by_one_of_two_processes(tmp_path):
    """By the launcher itself, always."""
    kept = {"problem_id": "a", "sample": 0, "in_pair": True, "finish_reason": "stop"}
    rows = [
        kept | {"role": role, "ids": ids, "reward": reward, "mask": [False] * 3, "old_logprobs": [-1.0] * 3}
        for role, ids, reward in (("error", [1, 2, 3], 0.0), ("repair", [1, 9, 3], 1.0))
    ]
    (tmp_path / "pairs").mkdir()
    write_rows(tmp_path / "pairs" / "groups-00000.parquet", GROUPS, rows)
    done = launched("build-masks", "--recipe", "digits", "--pairs", tmp_path / "pairs", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["mask"] for row in iterate_rows(tmp_path / "out", GROUPS)] == [[False, True, False]] * 2
    assert read_manifest(tmp_path / "out")["counts"] == {"pairs": 1, "tokens_in_pairs": 6, "tokens_marked": 2}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_stop_together_and_go_on(df_twice, tmp_path, digits, base_dir):
    """Training that a time limit stops ends with the bytes of training that nothing stopped, 32 steps here."""
    pairs = tmp_path / "pairs.parquet"
    pq.write_table(pq.read_table(digits / "repair_set.parquet").slice(0, 30), pairs)
    words = ["sft-repair", "--recipe", "digits", "--repair-set", pairs, "--model", base_dir]
    words += ["--set", "sft.epochs=8", "--set", "sft.batch_size=8"]
    assert df_twice(*words, "--out", tmp_path / "through").returncode == 0

    limited = [*words, "--out", tmp_path / "limited", "--stop-after", "1s"]
    stopped = df_twice(*limited)
    assert stopped.returncode != 0
    assert stopped.stderr.count("stopped (--stop-after, 1 s), what was done is saved") == 1
    [checkpoint] = (tmp_path / "limited" / "checkpoints").iterdir()
    assert {file.name for file in (checkpoint / "model").iterdir()} == {
        "counters.json", "optimizer.safetensors", "random-0.safetensors", "random-1.safetensors", "trained.safetensors",
    }  # fmt: skip
    assert df_twice(*limited[:-2]).returncode == 0
    for name in ("model/model.safetensors", "optimizer.safetensors", "samples.parquet"):
        assert (tmp_path / "limited" / name).read_bytes() == (tmp_path / "through" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_write_what_two_processes_of_one_write(tmp_path, digits, base_dir):
    """A round of rollouts, masks and training, each command on what the one before it wrote, byte for byte.

    Every step has as many rollouts, so that the means over them are the means over steps.
    """
    problems = tmp_path / "problems.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, 8), problems)
    on = ["--recipe", "digits", "--problems", problems, "--policy", base_dir]
    settings = ["rollout.samples_per_problem=4", "rollout.rows_per_shard=8", "train.group=all", "masks.candidates=2"]
    settings += ["train.problems_per_step=2"]
    on += [word for setting in settings for word in ("--set", setting)]
    for way, folder in ((df_pair, tmp_path / "one"), (df_of_nodes, tmp_path / "two")):
        of_step = {"rollout": [], "build-masks": ["--rollouts", folder / "rollout", "--repair-model", base_dir]}
        of_step["train-policy"] = ["--groups", folder / "build-masks"]
        for step, words in of_step.items():
            done = way(step, *on, *words, "--out", folder / step)
            assert done.returncode == 0, done.stderr[-3000:]
            assert read_manifest(folder / step)["devices"] == 2
    one, two = (read_manifest(tmp_path / name / "train-policy")["counts"] for name in ("one", "two"))
    assert one == two
    rollouts = pq.read_table([*(tmp_path / "one" / "rollout").glob("*.parquet")])
    metrics = list(iterate_rows(tmp_path / "one" / "train-policy" / "metrics.parquet", METRICS))
    for name, values in (
        ("reward_mean", rollouts["reward"]),
        ("response_length", pc.list_value_length(rollouts["ids"])),
    ):
        told = [row["value"] for row in metrics if row["metric"] == name]
        assert len(told) == 4
        assert sum(told) / 4 == pytest.approx(pc.mean(values).as_py())
    written = [file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file()]
    timed = {"manifest.json", "plan.json", "metrics.parquet"}
    compared = [file for file in written if file.name not in timed]
    assert {file.suffix for file in compared} >= {".parquet", ".safetensors", ".html"}
    for file in compared:
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), file
