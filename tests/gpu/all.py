"""Everything that is measured on a CUDA GPU, as one table: correctness, the digits pipeline, speed, memory.

    python tests/gpu/all.py [--parts correctness pipeline steps head attention generation] [--out runs/gpu]

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
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version

import torch
from attention import attention
from correctness import correctness
from generation import generation
from measured import Line
from pipeline import pipeline
from steps import head_chunks, settings, steps

PARTS: Mapping[str, list[Callable[[], Iterator[Line]]]] = {
    "correctness": [correctness],
    "head": [head_chunks],
    "attention": [attention],
    "steps": [partial(steps, setting) for setting in settings()],
    "generation": [generation],
    "pipeline": [pipeline],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    options = parser.parse_args()
    print(json.dumps(machine(), indent=2))
    lines: list[Line] = []
    failed: list[str] = []
    for name in options.parts:
        started = time.perf_counter()
        for part in PARTS[name]:
            try:
                for line in part():
                    lines.append(line)
                    print(line)
            except Exception:  # noqa: BLE001, told in the table's last lines; the other parts are worth their time
                failed.append(name)
                traceback.print_exc()
        print(f"-- {name}: {time.perf_counter() - started:.0f} s")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "failed": failed, "lines": [line.as_row() for line in lines]}
    (options.out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    print("\n".join(map(str, lines)))
    broken = [line for line in lines if line.holds is False]
    print(f"{len(lines)} lines; {len(broken)} do not hold; parts that ended early: {', '.join(failed) or 'none'}")
    return 1 if broken or failed else 0


def machine() -> dict[str, str]:
    """The card, the versions and the commit."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "card": torch.cuda.get_device_name(),
        "memory": f"{torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB",
        "commit": git.stdout.strip() or "unknown",
        **{name: version(name) for name in ("torch", "transformers", "accelerate", "trl")},
    }


if __name__ == "__main__":
    sys.exit(main())
