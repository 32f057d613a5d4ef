"""What a step wrote, without what tells of the machine and the time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.artifacts.manifests import MANIFEST
from stages.training.trainer import MACHINE_METRICS


def timeless(file: Path) -> object:
    if file.name == MANIFEST:
        return timeless_manifest(file)
    if file.name == "metrics.parquet":
        return [repr(row) for row in pq.read_table(file).to_pylist() if row["metric"] not in MACHINE_METRICS]
    if file.name == "metrics.jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [repr({k: v for k, v in line.items() if k not in MACHINE_METRICS}) for line in lines]
    return file.read_bytes()


def timeless_manifest(file: Path) -> dict[str, Any]:
    manifest = json.loads(file.read_text())
    del manifest["device_seconds"], manifest["checksum"]  # the checksum is over both
    manifest["files"].pop("metrics.parquet", None)
    return manifest
