"""Times one optimizer step of one group: TRL's GRPOTrainer, full logits, and this project with gates off and on.

    python tests/bench/training_step.py [--shape visual|text] [--group 8|16] [--repeats 5] [--out runs/bench]

Needs trl==1.16.0 and matplotlib; runs on the CPU, under Linux. Every side makes the same step on the same model and
trajectories, which is checked first; each takes the fastest number of rows at once for itself. Then the sides take
turns. On a CPU TRL's head reads the prompt's positions too, on a GPU only the response's: both are timed. Ratios are to
the latter, which is timed again with gradient checkpointing, TRL's default. Peak memory is the growth of the resident
size over one step of a fresh process that has model, inputs and optimizer state already and keeps no freed tensor.
"""

from __future__ import annotations

import stages.model  # noqa: F401, before transformers  # isort: skip

import argparse
import gc
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tiny_vlm import describe
from training_step_case import SHAPES, Case, make_case
from training_step_chart import BASE, LABELS, draw
from training_step_check import check_sides
from training_step_memory import RETURN_WHAT_IS_FREED, fresh_process
from training_step_sides import SIDES

PROBE = Path(__file__).with_name("training_step_probe.py")
PACKAGES = ("torch", "transformers", "trl", "accelerate")
COLUMNS = ("", "rows at once", "median s", "TRL / it", "peak MiB", "it / TRL")
WIDTH = 120


def main() -> None:
    options = _options()
    console = Console(width=max(Console().width, WIDTH))
    case = make_case(SHAPES[options.shape], options.group)
    report = _setting(options, case)
    console.print_json(data=report)
    report["largest_differences"] = check_sides(case)
    console.print_json(data=report["largest_differences"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pt"
        case.save(path)
        report["probe_seconds"] = _probes(path, options, console)
        fastest = {name: min(probes, key=probes.__getitem__) for name, probes in report["probe_seconds"].items()}
        report["peak_bytes"] = {name: _peak(path, name, rows) for name, rows in fastest.items()}
    report["rows_at_once"] = fastest
    report["seconds"] = _take_turns(case, fastest, options.repeats)
    report["median_seconds"] = {name: median(seconds) for name, seconds in report["seconds"].items()}
    console.print(_table(report))
    _write(report, options.out)


def cpu_model() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="visual")
    parser.add_argument("--group", type=int, choices=(2, 4, 8, 16), default=8)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each side, after one to warm up")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help=f"{BASE} among them")
    parser.add_argument(
        "--rows-at-once", type=int, help="of the others, and the group of ours, in place of the fastest"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    return parser.parse_args()


def _setting(options: argparse.Namespace, case: Case) -> dict[str, Any]:
    return {
        "shape": options.shape,
        "group": options.group,
        "prompt_tokens": len(case.prompt.ids),
        "visual_tokens": sum(case.prompt.token_types),
        "response_tokens": [len(row.ids) for row in case.rows],
        "open_share": case.open_share,
        "model": describe(case.model()),
        "versions": {name: version(name) for name in PACKAGES},
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
    }


def _probes(case: Path, options: argparse.Namespace, console: Console) -> dict[str, dict[int, float]]:
    """Of every side, the seconds of a step at those numbers of rows at once that fit into memory."""
    choices = sorted({*(rows for rows in (1, 2, 4) if rows < options.group), options.group})
    found: dict[str, dict[int, float]] = {}
    for name in options.sides:
        if options.rows_at_once:
            choices = [options.group if name.startswith("ours") else options.rows_at_once]
        probes = {rows: _probe(case, name, rows) for rows in choices}
        found[name] = {rows: probe["seconds"] for rows, probe in probes.items() if probe}
        console.print(f"{name}: " + ", ".join(f"{rows} at once {taken:.1f} s" for rows, taken in found[name].items()))
    return found


def _probe(case: Path, name: str, rows: int, environment: Mapping[str, str] = {}) -> dict[str, Any] | None:
    return fresh_process([str(PROBE), str(case), name, str(rows)], environment)


def _peak(case: Path, name: str, rows: int) -> float:
    probe = _probe(case, name, rows, RETURN_WHAT_IS_FREED)
    assert probe, f"{name} no longer fits into memory"
    return probe["peak_bytes"]


def _take_turns(case: Case, rows_at_once: Mapping[str, int], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side's steps, the first one left out."""
    sides = {name: SIDES[name](case, rows) for name, rows in rows_at_once.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 + repeats):
        for name, side in sides.items():
            gc.collect()
            started = time.perf_counter()
            side.step()
            seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def _table(report: Mapping[str, Any]) -> Table:
    seconds, peaks = report["median_seconds"], report["peak_bytes"]
    table = Table(title=f"One optimizer step, {report['shape']}, group of {report['group']}")
    for column in COLUMNS:
        table.add_column(column, justify="left" if not column else "right")
    for name in seconds:
        table.add_row(
            LABELS[name],
            str(report["rows_at_once"][name]),
            f"{seconds[name]:.2f}",
            f"{seconds[BASE] / seconds[name]:.2f}",
            f"{peaks[name] / 2**20:.0f}",
            f"{peaks[name] / peaks[BASE]:.2f}",
        )
    return table


def _write(report: Mapping[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"training_step-{report['shape']}-{report['group']}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    draw(report, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
