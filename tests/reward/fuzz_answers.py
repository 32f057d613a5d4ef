"""Fuzzes answer checking with atheris, from the table of hostile answers on.

python tests/reward/fuzz_answers.py {decide,compare} [--seconds 60] [--out runs/fuzz]

decide mutates whole responses and golds, led by the coverage of what the parent process does with them. compare strings
LaTeX tokens of the table together and lets a real worker compare them. An input that breaks a property ends the run
with exit status 77 and lies in OUT as TARGET-crash-…; what was learned lies in OUT/TARGET and is where the next run
starts.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["stages.reward.extraction", "stages.reward.answers", "stages.reward.rules"]):
    from stages.reward.answers import AnswerScorer, Comparison, _decide
    from stages.reward.extraction import gold_answer

from hostile_answers import ENDLESS, ROWS

SEPARATOR = b"\n=>\n"
PAIR = b"\xff\xff"
MAX_BYTES = 8192
DECIDE_S = 5.0
"""CPU seconds of a decision over MAX_BYTES, instrumented."""
COMPARE_S = 1.0
START_S = 60.0
"""Wall seconds in which a killed worker is up again, whatever else the machine does."""


def decide(data: bytes) -> None:
    response, _, gold = data.decode("utf-8", "surrogateescape").partition(SEPARATOR.decode())
    start = time.process_time()
    verdict = _decide(response, gold)
    assert verdict in (0.0, 1.0, None) or isinstance(verdict, Comparison), verdict
    expected = 1.0 if gold_answer(gold) is not None else None
    if fits_in_a_box(gold):
        assert _decide(f"\\boxed{{{gold}}}", gold) == expected, gold
    assert time.process_time() - start < DECIDE_S


def fits_in_a_box(gold: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\.|[{}]", gold, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    # A backslash at the end would escape the brace that closes the box.
    return depth == 0 and len(gold) <= 1000 and not re.search(r"\\boxed\{|####|\\$", gold)


TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[a-zA-Z]+|[0-9]+|.", re.DOTALL)
# What is long, or in no box, is decided without a worker.
ANSWERS = [match[1] for row in ROWS for text in row[:2] if (match := re.fullmatch(r".*\\boxed\{(.{,200})\}\$\.", text))]
GOLDS = [gold for _, gold, _ in ROWS if len(gold) <= 200]
TOKENS = sorted({token for text in [*ENDLESS, *ANSWERS, *GOLDS] for token in TOKEN.findall(text) if len(token) < 20})


def compare(data: bytes) -> None:
    response, _, gold = data.partition(PAIR)
    start = time.monotonic()
    (verdict,) = SCORER.score_many([f"\\boxed{{{spell(response)}}}"], [spell(gold)])
    assert verdict in (0.0, 1.0, None), verdict
    assert time.monotonic() - start < COMPARE_S + START_S


def spell(data: bytes) -> str:
    return "".join(TOKENS[(high << 8 | low) % len(TOKENS)] for high, low in zip(data[::2], data[1::2], strict=False))


def numbered(text: str) -> bytes:
    return b"".join(TOKENS.index(token).to_bytes(2, "big") for token in TOKEN.findall(text) if token in TOKENS)


SCORER = AnswerScorer(workers=1, timeout_s=COMPARE_S, memory_mb=512)


def seeds(target: Callable[[bytes], None]) -> list[bytes]:
    if target is decide:
        rows = [(response, gold) for response, gold, _ in ROWS if len(response) + len(gold) < MAX_BYTES // 2]
        return [SEPARATOR.join(text.encode("utf-8", "surrogatepass") for text in row) for row in rows]
    return [numbered(answer) + PAIR + numbered(gold) for answer, gold in zip(ANSWERS, GOLDS, strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=["decide", "compare"])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    target = {"decide": decide, "compare": compare}[options.target]
    learned = options.out / options.target
    learned.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (learned / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={options.seconds}", "-timeout=120", "-rss_limit_mb=2048"]
    lengths = f"-max_len={MAX_BYTES if target is decide else 120}"
    atheris.Setup(
        [sys.argv[0], *limits, lengths, f"-artifact_prefix={options.out}/{options.target}-", str(learned)], target
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
