"""One round of the digits pipeline: everything in float32, then the round again in bfloat16."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from measured import Line

from stages.artifacts.columns import METRICS
from stages.artifacts.manifests import read_manifest
from stages.artifacts.stage import Stage, execute
from stages.artifacts.store import iterate_rows
from stages.evaluate import Evaluate
from stages.recipe import Recipe, load_recipe
from stages.s1_sft_repair import SftRepair
from stages.s2_rl_repair import RlRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s5_train_policy import TrainPolicy

DIGITS = Path(__file__).parents[2] / "data" / "digits"
PAIRS = 200
SET = (
    "engine.name=transformers",
    "sft.epochs=1",
    "repair_rl.problems=64",
    "repair_rl.iterations=1",
    "repair_rl.errors_per_iteration=32",
    "rollout.problems=96",
    "evaluate.draws=2",
    "evaluate.image_removed=false",
)
FIRST_STEP = ("ratio_", "clip_fraction", "grad_norm", "mismatch_")
"""Beginnings of the metrics that tell whether sampler, scorer and trainer agree."""


def pipeline() -> Iterator[Line]:
    base, train, test = (DIGITS / name for name in ("base", "problems_train.parquet", "problems_test.parquet"))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        pairs, sft, rl = run / "pairs.parquet", run / "sft", run / "rl"
        pq.write_table(pq.read_table(DIGITS / "repair_set.parquet").slice(0, PAIRS), pairs, row_group_size=64)
        recipe = _recipe("float32")
        yield from _run("float32", SftRepair(recipe, pairs, base), sft)
        yield from _run("float32", RlRepair(recipe, train, base, sft, pairs), rl)
        for dtype in ("float32", "bfloat16"):
            recipe, own = _recipe(dtype), run / dtype
            yield from _run(dtype, Rollout(recipe, train, base), own / "rollout")
            yield from _run(dtype, BuildMasks(recipe, own / "rollout", train, rl, base), own / "masks")
            yield from _run(dtype, TrainPolicy(recipe, own / "masks", train, base), own / "policy")
            yield from _first_step(dtype, own / "policy")
            yield from _run(dtype, Evaluate(recipe, test, own / "policy"), own / "scores")


def _recipe(dtype: str) -> Recipe:
    return load_recipe("digits", [*SET, f"model.dtype={dtype}"])


def _run(dtype: str, stage: Stage, out: Path) -> Iterator[Line]:
    started = time.perf_counter()
    execute(stage, out)
    manifest = read_manifest(out)
    yield Line(dtype, f"df {manifest['step']}", time.perf_counter() - started, "s", True)
    yield Line(dtype, f"df {manifest['step']}: device-seconds", sum(manifest["device_seconds"].values()), "s")


def _first_step(dtype: str, out: Path) -> Iterator[Line]:
    rows = list(iterate_rows(out / f"{METRICS.name}.parquet", METRICS))
    first = min(row["step"] for row in rows)
    for row in rows:
        if row["step"] == first and row["metric"].startswith(FIRST_STEP):
            yield Line(dtype, f"train-policy, first step: {row['metric']}", row["value"], "")
