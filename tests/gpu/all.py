"""Everything that is measured on a CUDA GPU, as one table: correctness, speed, memory, the digits pipeline.

    python tests/gpu/all.py [--parts correctness pipeline ...] [--seconds 460] [--out runs/gpu]
    python tests/gpu/all.py --tiny

Ends in under eight minutes: a part has its own time, what is left over is not run and said so, and every line is told
when it is measured. A part that the card has no room for is a line too; 80 GB have room for all. Random weights, but
for the digits. `--tiny` runs everything at tiny dimensions, on a CPU too: it tries the script, its numbers say nothing.

TRL (trl==1.16.0), prefix-grouper and bitsandbytes (for four bits) may be missing: what needs them fails in a line.
Exit status: 0, all that has room was run and holds; 1, not so; 2, there is no CUDA GPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The sides of the CPU's benchmark are timed here too.
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
# One card: transformers' trainer, which is TRL's, would copy the model to all.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import stages.model  # noqa: F401, before transformers  # isort: skip

import argparse
import json
import subprocess
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
from attention import attention, attention_gib
from correctness import correctness
from generation import generation, generation_gib
from measured import Line
from pipeline import pipeline
from running import Ended, Part, run, work_through
from scales import TINY, TRUE, Scale
from steps import head_chunks, needs_gib, one_side, ratios

NO_GPU = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", metavar="PART", help=f"of these: {', '.join(parts_at(TRUE))}")
    parser.add_argument("--seconds", type=float, default=460, help="after which nothing more is run")
    parser.add_argument("--tiny", action="store_true", help="tiny dimensions, on a CPU too")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        print("no CUDA GPU here; --tiny tries everything at tiny dimensions on the CPU", file=sys.stderr)
        return NO_GPU
    parts = parts_at(TINY if options.tiny else TRUE)
    if unknown := {*(options.parts or ())} - parts.keys():
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    if options.worker:
        work_through({name: parts[name] for name in options.worker})
        return 0
    command = [sys.executable, __file__, *(["--tiny"] if options.tiny else []), "--worker"]
    return _report(command, {name: parts[name] for name in options.parts or parts}, options.seconds, options.out)


def parts_at(scale: Scale) -> Mapping[str, Part]:
    """In the order in which they are run: what says most comes first."""
    first, *others = scale.settings
    return {
        "correctness": Part(correctness, 120 * scale.patience),
        **_steps(scale, first),
        "pipeline": Part(pipeline, 240 * scale.patience),
        **{name: part for setting in others for name, part in _steps(scale, setting).items()},
        "generation": Part(partial(generation, scale.load), 150 * scale.patience, partial(generation_gib, scale.load)),
        "attention": Part(partial(attention, scale.layer), 60 * scale.patience, partial(attention_gib, scale.layer)),
        "head": Part(partial(head_chunks, scale.head), 60 * scale.patience),
    }


def _steps(scale: Scale, name: str) -> Mapping[str, Part]:
    setting = scale.settings[name]
    seconds = 90 * scale.patience
    return {
        f"{name}/{side}": Part(partial(one_side, name, setting, side), seconds, partial(needs_gib, setting, side))
        for side in setting.sides
    }


def _report(command: list[str], parts: Mapping[str, Part], seconds: float, out: Path) -> int:
    print(json.dumps(machine(), indent=2), flush=True)
    lines: list[Line] = []
    ends: list[Ended] = []
    for told in run(command, parts, seconds):
        print(told, flush=True)
        if isinstance(told, Line):
            lines.append(told)
        else:
            ends.append(told)
            _write(out, [*lines, *ratios(lines)], ends)
    lines += ratios(lines)
    print("", *lines, *(end for end in ends if end.why), sep="\n")
    failing = [line for line in lines if line.holds is False]
    broken = [end for end in ends if end.broken]
    print(f"{len(lines)} lines; {len(failing)} do not hold; {len(broken)} of {len(parts)} parts failed or had no time")
    return 1 if failing or broken else 0


def _write(out: Path, lines: list[Line], ends: list[Ended]) -> None:
    """After each part: a run that is cut off has left what it had."""
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine(),
        "lines": [line.as_row() for line in lines],
        "parts": {end.part: {"seconds": end.seconds, "why": end.why} for end in ends},
    }
    (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")


def machine() -> dict[str, str]:
    """The card, the versions and the commit."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "commit": git.stdout.strip() or "unknown",
        **{name: _version(name) for name in ("torch", "transformers", "accelerate", "peft", "trl", "bitsandbytes")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    sys.exit(main())
