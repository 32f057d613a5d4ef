"""Times one optimizer step of one group: TRL's GRPOTrainer, steps without padding and with the prompt read once, and
this project with gates off and on.

    python tests/bench/training_step.py [--shape visual|text] [--group 8|16] [--repeats 5] [--out runs/bench]

Needs the extra `bench`; runs on the CPU, under Linux. Every side makes the same step on the same model and
trajectories, which is checked first; each takes the fastest number of rows at once for itself. Then the sides take
turns. Seconds are those of CPU that the process had, so set OMP_NUM_THREADS=1: threads that wait count too. On a CPU
TRL's head reads the prompt's positions too, on a GPU only the response's: both are timed. The latter is timed again
with gradient checkpointing, TRL's default. The pass that reads old log-probs is timed apart. Peak memory is the growth
of the resident size over one step of a fresh process that has model, inputs and optimizer state already and keeps no
freed tensor.
"""

from __future__ import annotations

import stages.model  # noqa: F401, before transformers  # isort: skip

import argparse
import gc
import json
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tiny_vlm import describe
from training_step_case import SHAPES, Case, make_case
from training_step_chart import LABELS, draw
from training_step_check import check_sides
from training_step_lineup import ONE_ROW, SIDES
from training_step_memory import RETURN_WHAT_IS_FREED, fresh_process

PROBE = Path(__file__).with_name("training_step_probe.py")
PACKAGES = ("torch", "transformers", "trl", "prefix-grouper", "accelerate")
BESIDE = {"trl_compact": "TRL", "unpadded_row": "unpadded", "prefix_grouping": "prefix grouping"}
"""Whose seconds are divided by every side's."""
WIDTH = 160


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
        report["rows_at_once"] = _given_rows(options) if options.rows_at_once else _fastest_rows(path, options, console)
        measured = {} if options.no_peaks else report["rows_at_once"]
        report["peak_bytes"] = {name: _peak(path, name, rows) for name, rows in measured.items()}
    report |= _take_turns(case, report["rows_at_once"], options.repeats)
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
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument(
        "--rows-at-once", type=int, help="of padded rows, and the group in one row, in place of the fastest"
    )
    parser.add_argument("--no-peaks", action="store_true", help="measure no peak memory, which takes a step more")
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


def _given_rows(options: argparse.Namespace) -> dict[str, int]:
    return {name: options.group if name in ONE_ROW else options.rows_at_once for name in options.sides}


def _fastest_rows(case: Path, options: argparse.Namespace, console: Console) -> dict[str, int]:
    """Of every side, the number of rows at once, of those that fit into memory, at which a step takes least time."""
    choices = sorted({*(rows for rows in (1, 2, 4) if rows < options.group), options.group})
    fastest: dict[str, int] = {}
    for name in options.sides:
        probes = {rows: _probe(case, name, rows) for rows in choices}
        seconds = {rows: probe["seconds"] for rows, probe in probes.items() if probe}
        console.print(f"{name}: " + ", ".join(f"{rows} at once {taken:.1f} s" for rows, taken in seconds.items()))
        fastest[name] = min(seconds, key=seconds.__getitem__)
    return fastest


def _probe(case: Path, name: str, rows: int, environment: Mapping[str, str] = {}) -> dict[str, Any] | None:
    return fresh_process([str(PROBE), str(case), name, str(rows)], environment)


def _peak(case: Path, name: str, rows: int) -> float:
    probe = _probe(case, name, rows, RETURN_WHAT_IS_FREED)
    assert probe, f"{name} no longer fits into memory"
    return probe["peak_bytes"]


def _take_turns(case: Case, rows_at_once: Mapping[str, int], repeats: int) -> dict[str, Any]:
    """Seconds of each side's steps and of its passes over old log-probs, and their medians."""
    sides = {name: SIDES[name](case, rows) for name, rows in rows_at_once.items()}
    seconds: dict[str, dict[str, list[float]]] = {
        "seconds": defaultdict(list),
        "old_logprob_seconds": defaultdict(list),
    }
    for _ in range(repeats):
        for name, side in sides.items():
            seconds["old_logprob_seconds"][name].append(_seconds(side.old_logprobs))
            seconds["seconds"][name].append(_seconds(side.step))
    return seconds | {
        f"median_{kind}": {name: median(values) for name, values in by_name.items()}
        for kind, by_name in seconds.items()
    }


def _seconds(work: Callable[[], object]) -> float:
    gc.collect()
    started = time.process_time()
    work()
    return time.process_time() - started


def _table(report: Mapping[str, Any]) -> Table:
    seconds = report["median_seconds"]
    beside = {name: label for name, label in BESIDE.items() if name in seconds}
    table = Table(title=f"One optimizer step, {report['shape']}, group of {report['group']}")
    table.add_column("")
    ratios = [f"{label} / it" for label in beside.values()]
    peaks = {name: f"{value / 2**20:.0f}" for name, value in report["peak_bytes"].items()}
    for column in ("rows at once", "median s", *ratios, "old log-probs, s", "peak MiB"):
        table.add_column(column, justify="right")
    for name in seconds:
        table.add_row(
            LABELS[name],
            str(report["rows_at_once"][name]),
            f"{seconds[name]:.2f}",
            *(f"{seconds[other] / seconds[name]:.2f}" for other in beside),
            f"{report['median_old_logprob_seconds'][name]:.2f}",
            peaks.get(name, ""),
        )
    return table


def _write(report: Mapping[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"training_step-{report['shape']}-{report['group']}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    draw(report, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
