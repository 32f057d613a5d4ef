"""Everything that is measured on a CUDA GPU, as one table: correctness, the digits pipeline, speed, memory.

    python tests/gpu/all.py [--parts pipeline correctness ...] [--out runs/gpu]

Needs trl==1.16.0, 80 GB of GPU memory for the speed at true dimensions, and less than eight minutes on an H100. Random
weights throughout, but for the digits. Ends with 1 where something that must hold does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The sides of the CPU's benchmark are timed here too.
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import stages.model  # noqa: F401, before transformers  # isort: skip

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version

import torch
from attention import attention
from correctness import correctness
from generation import generation
from measured import Line
from pipeline import pipeline
from steps import SETTINGS, SIDES, head_chunks, one_side, ratios

PARTS: Mapping[str, Callable[[], Iterator[Line]]] = {
    "pipeline": pipeline,
    "correctness": correctness,
    "generation": generation,
    "head": head_chunks,
    "attention": attention,
    **{f"{setting}/{side}": partial(one_side, setting, side) for setting in SETTINGS for side in SIDES},
}
MEASURED = "measured: "


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--part", choices=PARTS, help="run this one alone, here, and print its lines as JSON")
    options = parser.parse_args()
    if options.part:
        for line in PARTS[options.part]():
            print(f"{MEASURED}{json.dumps(line.as_row())}", flush=True)
        return 0
    return _report(options.parts, options.out)


def _report(parts: list[str], out: Path) -> int:
    print(json.dumps(machine(), indent=2))
    lines: list[Line] = []
    failed: list[str] = []
    for name in parts:
        started = time.perf_counter()
        with _in_a_process(name) as process:
            for line in _measured(process):
                lines.append(line)
                print(line, flush=True)
        failed += [name] if process.returncode else []
        print(f"-- {name}: {time.perf_counter() - started:.0f} s", flush=True)
    lines += ratios(lines)
    out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "failed": failed, "lines": [line.as_row() for line in lines]}
    (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    print("", *lines, sep="\n")
    broken = [line for line in lines if line.holds is False]
    print(f"{len(lines)} lines; {len(broken)} do not hold; parts that ended early: {', '.join(failed) or 'none'}")
    return 1 if broken or failed else 0


def _in_a_process(part: str) -> subprocess.Popen[str]:
    """A process of its own leaves no memory behind."""
    return subprocess.Popen([sys.executable, __file__, "--part", part], stdout=subprocess.PIPE, text=True)


def _measured(process: subprocess.Popen[str]) -> Iterator[Line]:
    """The part's lines as they come."""
    for printed in process.stdout or ():
        if printed.startswith(MEASURED):
            yield Line(**json.loads(printed.removeprefix(MEASURED)))


def machine() -> dict[str, str]:
    """The card, the versions and the commit."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "card": torch.cuda.get_device_name(),
        "commit": git.stdout.strip() or "unknown",
        **{name: version(name) for name in ("torch", "transformers", "accelerate", "trl")},
    }


if __name__ == "__main__":
    sys.exit(main())
