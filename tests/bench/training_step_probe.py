"""One step of one side in a fresh process: its seconds of CPU and its peak memory, as a line of JSON.

python tests/bench/training_step_probe.py CASE SIDE ROWS_AT_ONCE
"""

from __future__ import annotations

import stages.model  # noqa: F401, before transformers  # isort: skip

import json
import sys
import time
from pathlib import Path

from training_step_case import Case
from training_step_lineup import SIDES
from training_step_memory import limit_memory, make_optimizer_state, peak_growth


def main(case: str, name: str, rows_at_once: str) -> None:
    side = SIDES[name](Case.load(Path(case)), int(rows_at_once))
    make_optimizer_state(side.optimizer)
    limit_memory()
    started = time.process_time()
    peak = peak_growth(side.step)
    print(json.dumps({"seconds": time.process_time() - started, "peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
