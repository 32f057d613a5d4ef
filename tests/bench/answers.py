"""Answers checked a second by the rule-based reward, on one core: plain ones, and LaTeX through one worker.

python tests/bench/answers.py [--out runs/bench] [--plain 20000] [--latex 200]

Needs Linux. Writes answers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from stages.reward.answers import AnswerScorer

REASONING = "The strip shows a three and an eight, so I add them and check the sum once more. " * 15
"""Before every final answer: some 300 tokens."""
GROUP = 8
"""Responses to a problem, which share its gold."""

Pair = tuple[str, str]

PLAIN: dict[str, Callable[[int], Pair]] = {
    "integers": lambda n: (str(n), str(n)),
    "thousands and units": lambda n: (rf"{n + 1000:,}\text{{ cm}}", f"{n + 1000} centimeters"),
    "fractions": lambda n: (rf"\frac{{{n}}}{{7}}", f"{n}/7"),
    "choices": lambda n: (f"({'ABCD'[n % 4]})", "ABCD"[n % 4]),
}


def sums_of_roots(n: int) -> Pair:
    return rf"{n}+{n}\sqrt{{{4 * n + 4}}}", rf"{2 * n}\sqrt{{{n + 1}}}+{n}"


def group_of_roots(n: int) -> Pair:
    """Eight different responses to each gold, one of them right."""
    problem, sample = divmod(n, GROUP)
    return rf"{problem + sample}\sqrt{{{4 * problem + 4}}}", rf"{2 * problem}\sqrt{{{problem + 1}}}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--plain", type=int, default=20_000)
    parser.add_argument("--latex", type=int, default=200)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rates = {name: measure(name, make, options.plain) for name, make in PLAIN.items()}
    rates["LaTeX"] = measure("LaTeX", sums_of_roots, options.latex)
    rates[f"LaTeX, groups of {GROUP}"] = measure(f"LaTeX, groups of {GROUP}", group_of_roots, options.latex)
    report = {"python": platform.python_version(), "load_1_min": os.getloadavg()[0], "answers": rates}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "answers.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(name: str, make: Callable[[int], Pair], count: int) -> dict[str, float]:
    """Answers a second in one batch, its worker started before; and a second of CPU, parent and worker together."""
    pairs = [make(n) for n in range(1, count + 1)]
    with AnswerScorer(workers=1, timeout_s=60.0) as scorer:
        scorer.score_many([r"\boxed{\sqrt{8}}"], [r"2\sqrt{2}"])
        worker = scorer._workers[0]._process
        assert worker is not None
        start, cpu_start = time.perf_counter(), time.process_time() + cpu_seconds(worker.pid)
        verdicts = scorer.score_many([f"{REASONING}\\boxed{{{answer}}}" for answer, _ in pairs], [g for _, g in pairs])
        seconds, cpu = time.perf_counter() - start, time.process_time() + cpu_seconds(worker.pid) - cpu_start
    assert None not in verdicts
    right = sum(map(float, verdicts)) / count
    print(
        f"{name:20} {count / seconds:8,.0f} a second, {count / cpu:8,.0f} a second of CPU; {right:.0%} right",
        flush=True,
    )
    return {"a_second": count / seconds, "a_second_of_cpu": count / cpu}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
