"""Two nodes over many shards of one problem each; one is killed midway, and the same launch goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

from launching import process_of, start_nodes
from stages.artifacts.manifests import read_manifest
from stages.artifacts.step import PENDING, PROGRESS, SETTLED
from sums import save_model, write_problems

ONE_STAGE = str(Path(__file__).with_name("one_stage.py"))
ONE_PROBLEM_A_SHARD = "rollout.rows_per_shard=2"
STAGES = {"rollout": 1, "build-masks": 2}
"""Each with the files of a shard."""
KILLED = 1
"""The node that is killed."""
LOOK_EVERY_S = 0.05


class OfNodes(NamedTuple):
    """What a stage of two nodes took, and whether it did anything twice."""

    seconds: float
    """Of both launches, starting included."""
    finished: int
    """Files that the first launch had noted as finished when it ended."""
    written_again: int
    """Of those, by the second."""
    rows_out: int


def measure_nodes(folder: Path, shards: int) -> dict[str, OfNodes]:
    """`rollout` and `build-masks` over so many shards, each with a node killed when half of them are there."""
    folder.mkdir()
    save_model(folder / "model")
    write_problems(folder / "problems.parquet", shards)
    return {stage: _measure(stage, folder, shards * files) for stage, files in STAGES.items()}


def _measure(stage: str, folder: Path, files: int) -> OfNodes:
    out, started = folder / stage, time.perf_counter()
    nodes = _start(stage, folder)
    while len(_files(out)) < files // 2:
        assert all(node.poll() is None for node in nodes), f"{stage}: {files // 2} files never came"
        time.sleep(LOOK_EVERY_S)
    process_of(nodes[KILLED], ONE_STAGE).kill()
    assert 0 not in [node.wait() for node in nodes], f"{stage}: it did not notice that a node was gone"
    notes = [out / PROGRESS, *(out / SETTLED).glob("*.json")]
    finished, before = {name for note in notes for name in json.loads(note.read_text())["files"]}, _stamps(out)

    codes = [node.wait() for node in _start(stage, folder)]
    assert codes == [0, 0], f"{stage}: exit codes {codes}; see {folder}/*.err"
    after = _stamps(out)
    again = sum(before[name] != after[name] for name in finished)
    assert len(after) == files
    return OfNodes(time.perf_counter() - started, len(finished), again, read_manifest(out)["rows_out"])


def _start(stage: str, folder: Path) -> Sequence[Popen[Any]]:
    return start_nodes(folder, ONE_STAGE, stage, folder, ONE_PROBLEM_A_SHARD)


def _stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Which file each shard is, and when it was written; nothing may write there."""
    stats = {name: file.stat() for name, file in _files(out).items()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def _files(out: Path) -> dict[str, Path]:
    """The shards that are whole, whether they have their names yet or not."""
    whole = (file for end in ("", PENDING) for file in out.glob(f"*-*.parquet{end}"))
    return {file.name.removesuffix(PENDING): file for file in whole}
