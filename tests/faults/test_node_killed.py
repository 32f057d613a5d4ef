"""A process of one of two nodes is killed: both end, and the same launch goes on with what was left."""

import time

import pyarrow.parquet as pq
import pytest

import one_node
from interrupted import Progress, Trace, content
from launching import process_of, start_nodes
from stages.artifacts.columns import ROLLOUTS
from stages.artifacts.manifests import MANIFEST
from stages.artifacts.step import PENDING
from stages.artifacts.store import iterate_rows

PROBLEMS = 24
SETTINGS = [
    "rollout.samples_per_problem=2",
    "rollout.rows_per_shard=4",
    "rollout.max_new_tokens=48",
    "masks.candidates=1",
]
SHARDS = PROBLEMS // 2
FILES = {"rollout": SHARDS, "build-masks": 2 * SHARDS}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def start(digits, tmp_path_factory):
    """A function: a `df` step begun on two nodes that write to one folder."""
    problems = tmp_path_factory.mktemp("data") / "problems.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, PROBLEMS), problems)

    def run(out, step, *options):
        words = [step, "--recipe", "digits", "--problems", problems, "--policy", digits / "base", *options]
        words += [word for setting in SETTINGS for word in ("--set", setting)]
        return start_nodes(out.parent, one_node.__file__, *words, "--out", out)

    return run


@pytest.fixture(scope="module")
def rollouts(start, tmp_path_factory):
    return undisturbed(start, tmp_path_factory.mktemp("undisturbed") / "rollouts", "rollout")


def undisturbed(start, out, *words):
    assert ended(start(out, *words)) == [0, 0]
    return out


def ended(nodes):
    """The exit codes of both launchers."""
    try:
        return [node.wait(300) for node in nodes]
    finally:
        for node in nodes:
            node.kill()


def wait_for_shards(out, count, nodes):
    while len(Progress.of(out).shards) < count:
        assert all(node.poll() is None for node in nodes), f"{count} shards never came"
        time.sleep(0.005)


def work_of(out):
    """What each node computed, in order."""
    return [[piece for _, piece in Trace.of(out.with_name(f"{out.name}-{rank}")).work] for rank in (0, 1)]


def stamps(out):
    """When each shard of a folder was written, and where, whether it has its name yet or not."""
    files = out.glob("*.parquet*")
    return {file.name.removesuffix(PENDING): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def killed_and_given_again(start, out, rank, *words):
    """How many files were finished when a node was killed; the second launch leaves them as they are."""
    nodes = start(out, *words)
    wait_for_shards(out, 3, nodes)
    process_of(nodes[rank], one_node.__file__).kill()
    assert 0 not in ended(nodes)
    assert not (out / MANIFEST).exists()
    finished, written = Progress.of(out).shards, stamps(out)
    assert 3 <= len(finished) < FILES[words[0]]

    assert ended(start(out, *words)) == [0, 0]
    assert {name: stamp for name, stamp in stamps(out).items() if name in finished}.items() <= written.items()
    return len(finished)


@pytest.mark.parametrize("rank", [0, 1])
def test_both_nodes_end_and_go_on_where_one_was_killed(rank, start, rollouts, tmp_path):
    out = tmp_path / "out"
    finished = killed_and_given_again(start, out, rank, "rollout")
    for again, whole in zip(work_of(out), work_of(rollouts), strict=True):
        per_shard, rest = divmod(len(whole), SHARDS)
        assert (per_shard > 0, rest) == (True, 0)
        assert again == whole[per_shard * finished :]
    rows = list(iterate_rows(out, ROLLOUTS))
    assert len({(row["problem_id"], row["sample"]) for row in rows}) == len(rows) == 2 * PROBLEMS
    assert content(out) == content(rollouts)


def test_build_masks_goes_on_where_one_of_two_nodes_was_killed(start, rollouts, digits, tmp_path):
    words = ["build-masks", "--rollouts", rollouts, "--repair-model", digits / "base"]
    whole, out = undisturbed(start, tmp_path / "whole", *words), tmp_path / "out"
    killed_and_given_again(start, out, 1, *words)
    for again, all_of_it in zip(work_of(out), work_of(whole), strict=True):
        assert 0 < len(again) < len(all_of_it)
        assert again == all_of_it[-len(again) :]  # what the shards that were not finished take
    assert content(out) == content(whole)
