"""One round of the digits pipeline by its commands: everything in float32, then the round again in bfloat16."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from measured import Line

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


def pipeline() -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as folder:
        run, base = Path(folder), DIGITS / "base"
        train, test, pairs = DIGITS / "problems_train.parquet", DIGITS / "problems_test.parquet", run / "pairs.parquet"
        pq.write_table(pq.read_table(DIGITS / "repair_set.parquet").slice(0, PAIRS), pairs, row_group_size=64)
        sft, rl = run / "sft", run / "rl"
        yield from _command("float32", "sft-repair", sft, "--repair-set", pairs, "--model", base)
        yield from _command("float32", "rl-repair", rl, "--problems", train, "--policy", base, "--repair-model", sft,
                            "--repair-set", pairs)  # fmt: skip
        for dtype in ("float32", "bfloat16"):
            own = run / dtype
            yield from _command(dtype, "rollout", own / "rollout", "--problems", train, "--policy", base)
            yield from _command(dtype, "build-masks", own / "masks", "--rollouts", own / "rollout", "--problems", train,
                                "--repair-model", rl, "--policy", base)  # fmt: skip
            yield from _command(dtype, "train-policy", own / "policy", "--groups", own / "masks", "--problems", train,
                                "--policy", base)  # fmt: skip
            first = pq.read_table(own / "policy" / "metrics.parquet").to_pylist()
            step = min(row["step"] for row in first)
            for row in first:
                if row["step"] == step and row["metric"].startswith(
                    ("ratio_", "grad_norm", "mismatch_", "clip_fraction")
                ):
                    yield Line(dtype, f"train-policy, first step: {row['metric']}", row["value"], "")
        yield from _command("bfloat16", "evaluate", run / "scores", "--problems", test, "--model", own / "policy")


def _command(dtype: str, name: str, out: Path, *inputs: object) -> Iterator[Line]:
    """Raises RuntimeError where it fails, with what it printed."""
    assignments = [argument for value in (*SET, f"model.dtype={dtype}") for argument in ("--set", value)]
    command = [sys.executable, "-m", "df_cli", name, *map(str, inputs), "--out", str(out), "--recipe", "digits"]
    started = time.perf_counter()
    done = subprocess.run([*command, *assignments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"df {name} ended with {done.returncode}:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    yield Line(dtype, f"df {name}", time.perf_counter() - started, "s", True)
    phases = json.loads((out / "manifest.json").read_text())["device_seconds"]
    yield Line(dtype, f"df {name}: device-seconds", sum(phases.values()), "s")
