"""One stage over sums in a process of its own: {rollout,build-masks,realign,train-policy} FOLDER [SECTION.KEY=VALUE]...

Reads `problems.parquet` and `model` of the folder and the output of the stage before, and prints what it took, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stages.artifacts.stage import Stage, execute
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s4_realign_pairs import RealignPairs
from stages.s5_train_policy import TrainPolicy
from sums import SumEngine, SumModels, recipe

STAGES = ("rollout", "build-masks", "train-policy")
OF_SHARDS = ("rollout", "build-masks", "realign")
"""Stages that write a shard for each that they read."""


def main() -> None:
    name, folder, given = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    before, started, cpu = memory_mib("VmRSS"), time.perf_counter(), time.process_time()
    manifest = execute(stage_of(name, folder, given), folder / name).manifest
    if manifest is None:  # the first process of several tells
        return
    measured = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "rss_before_mib": before,
        "peak_rss_mib": memory_mib("VmHWM"),
    }
    print(json.dumps(measured | {key: manifest[key] for key in ("rows_in", "rows_out", "dropped", "counts")}))


def stage_of(name: str, folder: Path, given: Sequence[str]) -> Stage:
    settings, problems, model = recipe(*given), folder / "problems.parquet", folder / "model"
    models = SumModels(SumEngine)
    if name == "rollout":
        return Rollout(settings, problems, model, models=models)
    if name == "build-masks":
        return BuildMasks(settings, folder / "rollout", problems, model, model, models=models)
    if name == "realign":
        return RealignPairs(settings, folder / "build-masks")
    return TrainPolicy(settings, folder / "build-masks", problems, model)


def memory_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
