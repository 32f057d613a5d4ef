"""A process of one of two nodes is killed: both end, and the same launch goes on with what was left."""

import signal
import time

import psutil
import pyarrow.parquet as pq
import pytest

import one_node
from interrupted import Progress, Trace, content
from launching import start_nodes
from stages.artifacts.columns import ROLLOUTS
from stages.artifacts.manifests import MANIFEST
from stages.artifacts.step import PENDING
from stages.artifacts.store import iterate_rows

PROBLEMS = 24
SETTINGS = ["rollout.samples_per_problem=2", "rollout.rows_per_shard=4", "rollout.max_new_tokens=48"]
SHARDS = PROBLEMS // 2
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def start(digits, tmp_path_factory):
    """A function: `df rollout` begun on two nodes that write to one folder."""
    problems = tmp_path_factory.mktemp("data") / "problems.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, PROBLEMS), problems)

    def run(out):
        words = ["rollout", "--recipe", "digits", "--problems", problems, "--policy", digits / "base"]
        words += [word for setting in SETTINGS for word in ("--set", setting)]
        return start_nodes(out.parent, one_node.__file__, *words, "--out", out)

    return run


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert ended(start(out)) == [0, 0]
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


def process_of(node):
    """The one that its launcher started."""
    (process,) = (p for p in psutil.Process(node.pid).children() if one_node.__file__ in p.cmdline())
    return process


def work_of(out):
    """What each node computed, in order."""
    return [[piece for _, piece in Trace.of(out.with_name(f"{out.name}-{rank}")).work] for rank in (0, 1)]


def stamps(out):
    """When each shard of a folder was written, and where, whether it has its name yet or not."""
    files = out.glob("*.parquet*")
    return {file.name.removesuffix(PENDING): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.mark.parametrize("rank", [0, 1])
def test_both_nodes_end_and_go_on_where_one_was_killed(rank, start, undisturbed, tmp_path):
    out = tmp_path / "out"
    nodes = start(out)
    wait_for_shards(out, 3, nodes)
    process_of(nodes[rank]).send_signal(signal.SIGKILL)
    assert 0 not in ended(nodes)
    assert not (out / MANIFEST).exists()
    finished, written = Progress.of(out).shards, stamps(out)
    assert 3 <= len(finished) < SHARDS

    assert ended(start(out)) == [0, 0]
    assert {name: stamp for name, stamp in stamps(out).items() if name in finished}.items() <= written.items()
    for again, whole in zip(work_of(out), work_of(undisturbed), strict=True):
        per_shard, rest = divmod(len(whole), SHARDS)
        assert (per_shard > 0, rest) == (True, 0)
        assert again == whole[per_shard * len(finished) :]
    rows = list(iterate_rows(out, ROLLOUTS))
    assert len({(row["problem_id"], row["sample"]) for row in rows}) == len(rows) == 2 * PROBLEMS
    assert content(out) == content(undisturbed)
