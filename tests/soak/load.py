"""Memory, open files and speed of the stages as problems, and then shards, grow tenfold, and a slow judge's occupancy.

python tests/soak/load.py [--out runs/soak] [--problems 10000 100000] [--shards 1000 10000] [--of-nodes 10000]
    [--judged 512]

Needs Linux, and the top folder and `tests/support` on PYTHONPATH (`make soak`). Writes load.json; ends with 1 where the
peak of the largest size is over 1.2 times that of the smallest, files open grow with it, a shard among many takes half
as long again as one among few, two nodes of which one is killed write a shard twice, or the judge is left idle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nodes import ONE_PROBLEM_A_SHARD, OfNodes, measure_nodes
from one_stage import OF_SHARDS, STAGES
from slow_judge import Occupancy, measure
from sums import save_model, write_problems

LARGEST_RATIO = 1.2
"""Of peak resident memory, largest to smallest size."""
LARGEST_SLOWDOWN = 1.5
"""CPU seconds of a shard, largest to smallest number of them."""
FILES_SLACK = 8
"""Open files that the moments at which they are counted may differ by."""
LEAST_OCCUPANCY = 0.9
LOOK_EVERY_S = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    parser.add_argument("--problems", type=int, nargs=2, default=[10_000, 100_000])
    parser.add_argument("--shards", type=int, nargs=2, default=[1_000, 10_000], help="of one problem each")
    parser.add_argument("--of-nodes", type=int, default=10_000, help="shards of one problem each, of two nodes")
    parser.add_argument("--judged", type=int, default=512, help="problems, two responses each, 256 responses a shard")
    parser.add_argument("--spread-s", type=float, default=0.5, help="how far the judge's seconds go from its 2")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        sizes = [measure_size(Path(folder) / str(problems), problems) for problems in options.problems]
        faults = compare(options.problems, *sizes)
        shards = [
            measure_size(Path(folder) / f"{count}-shards", count, OF_SHARDS, ONE_PROBLEM_A_SHARD)
            for count in options.shards
        ]
        faults += compare(options.shards, *shards) + slower(options.shards, *shards)
        of_nodes = measure_nodes(Path(folder) / "nodes", options.of_nodes)
        faults += twice(options.of_nodes, of_nodes)
        settings = {"limit": 16, "answer_s": 2.0, "spread_s": options.spread_s, "generate_s": 4.0}
        judge = measure_judge(Path(folder), problems=options.judged, **settings)
    if judge["ahead"].share < LEAST_OCCUPANCY:
        faults.append(f"the judge's places are filled to {judge['ahead'].share:.0%}, less than {LEAST_OCCUPANCY:.0%}")
    report = {"problems": options.problems, "sizes": sizes, "shards": options.shards, "of_shards": shards}
    report |= {"of_nodes": {stage: of._asdict() for stage, of in of_nodes.items()}}
    report |= {"judge": {name: of._asdict() for name, of in judge.items()}}
    (options.out / "load.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit("\n".join(faults) or None)


def measure_size(
    folder: Path, problems: int, stages: Sequence[str] = STAGES, *settings: str
) -> dict[str, dict[str, Any]]:
    """What each stage took over this many problems; every one is answered, repaired and, by `STAGES`, trained on."""
    folder.mkdir()
    save_model(folder / "model")
    write_problems(folder / "problems.parquet", problems)
    took = {stage: run_stage(stage, folder, *settings) for stage in stages}
    assert took["build-masks"]["counts"]["errors_repaired"] == problems
    assert stages is not STAGES or took["train-policy"]["rows_out"] == problems
    return took


def run_stage(stage: str, folder: Path, *settings: str) -> dict[str, Any]:
    """What the stage's process says of itself, and the most files that it was seen to have open."""
    command = [sys.executable, str(Path(__file__).parent / "one_stage.py"), stage, str(folder), *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        most_files = 0
        while process.poll() is None:
            most_files = max(most_files, open_files(process.pid))
            time.sleep(LOOK_EVERY_S)
        assert process.stdout is not None
        told = process.stdout.read()
    if process.returncode:
        sys.exit(f"{stage}: exit code {process.returncode}")
    return json.loads(told) | {"most_files": most_files}


def open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, PermissionError):  # it has just ended
        return 0


def compare(problems: Sequence[int], small: dict[str, Any], large: dict[str, Any]) -> list[str]:
    """Print a line a stage; give what grew too much."""
    fewer, more = problems
    print(f"| stage | problems | s | problems/s | peak MiB | ratio | bytes a problem | open files |\n|{'---|' * 8}")
    faults = []
    for stage in small:
        ratio = large[stage]["peak_rss_mib"] / small[stage]["peak_rss_mib"]
        growth = (large[stage]["peak_rss_mib"] - small[stage]["peak_rss_mib"]) * 2**20 / (more - fewer)
        for count, measured, last in ((fewer, small, ("", "")), (more, large, (f"{ratio:.3f}", f"{growth:.0f}"))):
            took = measured[stage]
            print(
                f"| {stage} | {count:,} | {took['seconds']:.0f} | {count / took['seconds']:.0f} "
                f"| {took['peak_rss_mib']:.0f} | {' | '.join(last)} | {took['most_files']} |",
                flush=True,
            )
        if ratio > LARGEST_RATIO:
            faults.append(f"{stage}: peak memory grows by {ratio:.3f}, more than {LARGEST_RATIO}")
        if large[stage]["most_files"] > small[stage]["most_files"] + FILES_SLACK:
            faults.append(f"{stage}: {small[stage]['most_files']} files open, then {large[stage]['most_files']}")
    return faults


def slower(shards: Sequence[int], small: dict[str, Any], large: dict[str, Any]) -> list[str]:
    """Print a line a stage: what a shard takes of the CPU, among few and among many; give which takes longer there."""
    faults = []
    for stage in small:
        few_ms, many_ms = (1000 * of[stage]["cpu_seconds"] / n for of, n in zip((small, large), shards, strict=True))
        told = f"{stage}: {few_ms:.1f} ms a shard among {shards[0]:,}, {many_ms:.1f} among {shards[1]:,}"
        print(told, flush=True)
        faults += [told] if many_ms > LARGEST_SLOWDOWN * few_ms else []
    return faults


def twice(shards: int, stages: Mapping[str, OfNodes]) -> list[str]:
    """Print a line a stage; give which did again what was finished."""
    for stage, of in stages.items():
        print(
            f"{stage} of two nodes, one killed: {shards:,} shards in {of.seconds:.0f} s, {of.rows_out:,} rows; "
            f"{of.finished:,} files were finished, {of.written_again:,} of them were written again",
            flush=True,
        )
    return [f"{stage}: {of.written_again} files were written twice" for stage, of in stages.items() if of.written_again]


def measure_judge(folder: Path, *, problems: int, **settings: Any) -> dict[str, Occupancy]:
    """The same rollout where judging waits for its shard to be done before the next is generated, and as it is."""
    save_model(folder / "model")
    write_problems(folder / "problems.parquet", problems)
    found = {}
    for name, ahead in (("in turn", False), ("ahead", True)):
        out = folder / f"judged-{name}"
        found[name] = measure(folder, out, problems=problems, ahead=ahead, **settings)
        print(
            "judge {}: {:.1f} s, its bound {:.1f}; places filled to {:.1%}, at most {} requests at once".format(
                name, *found[name]
            ),
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
