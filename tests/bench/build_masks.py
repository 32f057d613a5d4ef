"""Pairs a second of `df build-masks --pairs`, Parquet to Parquet on one thread, beside the bare aligner's rate.

python tests/bench/build_masks.py [--out runs/bench] [--pairs 10000 100000 1000000]

Needs Linux and matplotlib. Writes build_masks.json and build_masks.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import rapidfuzz
from rapidfuzz.distance import Levenshtein

from stages.artifacts.columns import GROUPS
from stages.artifacts.step import Plan, Step
from stages.artifacts.store import iterate_tables, parquet_files

mpl.use("Agg")
from matplotlib import pyplot as plt

VOCABULARY = 151_936
TOKENS = 300
"""Of an error; its repair has as many, give or take what the edits insert and delete."""
EDITED = 24
"""Tokens that the edits of a pair touch: 8%."""
PAIRS_PER_SHARD = 50_000
PAIRS_PER_TABLE = 1_000
BYTES_PER_PAIR = 10_000
"""Of disk, for input and output together, and some to spare."""

STAGE = """
import json, sys, time
from pathlib import Path
from stages.artifacts.stage import execute
from stages.recipe import load_recipe
from stages.s4_realign_pairs import RealignPairs

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))

before, started, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
manifest = execute(RealignPairs(load_recipe("digits"), Path(sys.argv[1])), Path(sys.argv[2])).manifest
print(json.dumps({
    "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu,
    "rss_before_mib": before, "peak_rss_mib": memory("VmHWM"), "counts": manifest["counts"],
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    needed = max(options.pairs) * BYTES_PER_PAIR
    if shutil.disk_usage(options.out).free < needed:
        parser.error(f"{options.out}: {max(options.pairs)} pairs need {needed / 1e9:.0f} GB of free disk")
    results = [measure(options.out, pairs) for pairs in options.pairs]
    report = {"machine": machine(), "tokens": TOKENS, "vocabulary": VOCABULARY, "edited": EDITED, "sizes": results}
    (options.out / "build_masks.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot(results, options.out / "build_masks.png")


def measure(out: Path, pairs: int) -> dict[str, Any]:
    """One size; its files are gone afterwards."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        groups = Path(folder) / "pairs"
        write_pairs(groups, pairs)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", STAGE, str(groups), str(Path(folder) / "realigned")]
        stage = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
        assert stage["counts"]["pairs"] == pairs
        bare_seconds, bare_cpu_seconds = time_bare_aligner(groups)
        result = {
            "pairs": pairs,
            "pairs_per_second": pairs / stage["seconds"],
            "pairs_per_cpu_second": pairs / stage["cpu_seconds"],
            "bare_aligner_pairs_per_second": pairs / bare_seconds,
            "bare_aligner_pairs_per_cpu_second": pairs / bare_cpu_seconds,
            "input_bytes": sum(file.stat().st_size for file in parquet_files(groups, GROUPS)),
            **stage,
        }
    print(
        "{pairs:9,d} pairs in {seconds:.1f} s: {pairs_per_second:,.0f} pairs/s, {pairs_per_cpu_second:,.0f} a second "
        "of CPU; bare aligner {bare_aligner_pairs_per_second:,.0f}, {bare_aligner_pairs_per_cpu_second:,.0f}; peak RSS "
        "{peak_rss_mib:.0f} MiB, {rss_before_mib:.0f} before".format_map(result),
        flush=True,
    )
    return result


def write_pairs(folder: Path, pairs: int) -> None:
    step = Step.open(folder, Plan("build-masks", {}, 0, {}))
    rng = np.random.default_rng(0)
    for index, first in enumerate(range(0, pairs, PAIRS_PER_SHARD)):
        step.stream_shard(index, GROUPS, tables(rng, first, min(first + PAIRS_PER_SHARD, pairs)))
    step.finish()


def tables(rng: np.random.Generator, first: int, last: int) -> Iterator[pa.Table]:
    for start in range(first, last, PAIRS_PER_TABLE):
        yield make_table(rng, np.arange(start, min(start + PAIRS_PER_TABLE, last)))


def make_table(rng: np.random.Generator, numbers_N: np.ndarray) -> pa.Table:
    """Rows of `groups` for these pairs; nothing is marked yet."""
    rows = [ids for _ in numbers_N for ids in make_pair(rng)]
    bounds = np.cumsum([0] + [len(ids) for ids in rows], dtype=np.int32)
    logprobs = -np.exp(rng.normal(-2, 2, bounds[-1])).astype(np.float32)
    columns = {
        "problem_id": [f"problem-{number // 8:07d}" for number in numbers_N for _ in range(2)],
        "sample": np.repeat(numbers_N % 8, 2).astype(np.int32),
        "role": ["error", "repair"] * len(numbers_N),
        "in_pair": np.ones(len(rows), np.bool_),
        "ids": pa.ListArray.from_arrays(bounds, np.concatenate(rows)),
        "reward": np.arange(len(rows), dtype=np.float32) % 2,
        "mask": pa.ListArray.from_arrays(bounds, np.zeros(bounds[-1], np.bool_)),
        "old_logprobs": pa.ListArray.from_arrays(bounds, logprobs),
        "finish_reason": ["stop"] * len(rows),
        "sampler_logprobs": pa.ListArray.from_arrays(bounds, logprobs, mask=pa.array([False, True] * len(numbers_N))),
    }
    return pa.table(columns, schema=GROUPS.schema())


def make_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An error, and the same after two to four edits, each a replacement, a deletion or an insertion of some tokens."""
    error_T = rng.integers(VOCABULARY, size=TOKENS, dtype=np.int32)
    spans = int(rng.integers(2, 5))
    size = EDITED // spans
    kept, pieces = 0, []
    for left, right in pairwise(range(0, TOKENS + 1, TOKENS // spans)):
        start, kind = int(rng.integers(left, right - size)), rng.integers(3)
        new = rng.integers(VOCABULARY, size=0 if kind == 0 else size, dtype=np.int32)
        pieces += [error_T[kept:start], new]
        kept = start if kind == 1 else start + size
    return error_T, np.concatenate([*pieces, error_T[kept:]])


def time_bare_aligner(groups: Path) -> tuple[float, float]:
    """Seconds, and seconds of CPU, of `Levenshtein.opcodes` alone on lists that are there, over all pairs."""
    seconds = cpu_seconds = 0.0
    for shard in parquet_files(groups, GROUPS):
        for table in iterate_tables(shard, GROUPS):
            ids = table["ids"].to_pylist()
            pairs = list(zip(ids[::2], ids[1::2], strict=True))
            started, cpu_started = time.perf_counter(), time.process_time()
            for error, repair in pairs:
                Levenshtein.opcodes(error, repair)
            seconds += time.perf_counter() - started
            cpu_seconds += time.process_time() - cpu_started
    return seconds, cpu_seconds


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    versions = {"python": platform.python_version(), "pyarrow": pa.__version__, "rapidfuzz": rapidfuzz.__version__}
    return {"cpu": model, "cores": os.cpu_count(), "load_1_min": os.getloadavg()[0], **versions}


def plot(results: list[dict[str, Any]], path: Path) -> None:
    pairs = [result["pairs"] for result in results]
    figure, (time_axis, memory_axis) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    time_axis.loglog(pairs, [result["seconds"] for result in results], "o-", label="Parquet to Parquet")
    time_axis.loglog(pairs, [result["cpu_seconds"] for result in results], "o:", label="the same, of CPU")
    bare = [result["pairs"] / result["bare_aligner_pairs_per_second"] for result in results]
    time_axis.loglog(pairs, bare, "s--", label="bare aligner")
    time_axis.loglog(pairs, [n / 10_000 for n in pairs], ":", color="grey", label="10,000 pairs/s")
    memory_axis.loglog(pairs, [result["peak_rss_mib"] for result in results], "o-", label="peak")
    memory_axis.loglog(
        pairs, [result["rss_before_mib"] for result in results], ":", color="grey", label="before the stage"
    )
    memory_axis.set_ylim(100, 10_000)
    for axis, label in ((time_axis, "seconds"), (memory_axis, "resident memory, MiB")):
        axis.set(xlabel=f"pairs of {TOKENS} tokens", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
