"""The table of hostile answers, scored by real workers: as it says, in bounded time and memory, running no code."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hostile_answers import ENDLESS, ROOT, ROWS, boxed
from stages.reward import answers, choice_extraction, extraction
from stages.reward.answers import AnswerScorer, _decide, _Worker
from stages.reward.rules import choices, equality, figures, lists, names, quantities, ranges, typography

REPOSITORY = Path(__file__).parents[2]
MEMORY_MB = 1024
TIMEOUT_S = 120.0  # of the wall: four processes may share two cores
GENERATED_NAMES = {
    *("sympy", "Integer", "Float", "_lambdifygenerated", "numpy", "numpy.linalg", "scipy", "scipy.special"),
    *(f"monomial_{name}" for name in ("mul", "pow", "mulpow", "ldiv", "div", "lcm", "gcd")),
}

# The worker itself, telling what Python code it was asked to run (`asked`) and what its guard let happen (`done`).
WATCHED_WORKER = r"""
import json, os, sys
from stages.reward import code_guard
from stages.reward import answer_worker

log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
install = code_guard.install

def tell(kind):
    def hook(event, args):
        if event == "exec" and args[0].co_filename.startswith("<") and not args[0].co_filename.startswith("<frozen"):
            what = sorted(names(args[0]))
        elif event == "open" and isinstance(args[1], str) and args[1].strip("rbt"):
            what = [str(args[0])]
        elif event.split(".")[0] in ("os", "subprocess", "socket", "shutil", "ctypes", "pty", "signal"):
            what = []
        else:
            return
        if not imports():
            os.write(log, json.dumps([kind, event, what]).encode() + b"\n")
    return hook

def names(code):
    return set(code.co_names).union(*(names(inner) for inner in code.co_consts if hasattr(inner, "co_names")))

def imports():
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False

def install_between():
    sys.addaudithook(tell("asked"))
    install()
    sys.addaudithook(tell("done"))

code_guard.install = install_between
answer_worker.main(int(sys.argv[2]), float(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The verdicts of the table, the seconds it took, its workers' peaks in KiB, and what they told."""
    log = tmp_path_factory.mktemp("watched") / "log"
    log.touch()

    def launch(_: _Worker) -> subprocess.Popen[bytes]:
        arguments = [str(log), str(MEMORY_MB), str(2 * TIMEOUT_S)]
        command = [sys.executable, "-c", WATCHED_WORKER, *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=REPOSITORY)

    peaks: dict[int, int] = {}
    done = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Worker, "_launch", launch)
        with AnswerScorer(workers=2, timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB) as scorer:
            watch = threading.Thread(target=watch_memory, args=(scorer, peaks, done))
            watch.start()
            start = time.monotonic()
            verdicts = scorer.score_many([response for response, _, _ in ROWS], [gold for _, gold, _ in ROWS])
            seconds = time.monotonic() - start
            done.set()
            watch.join()
    return verdicts, seconds, peaks, [json.loads(line) for line in log.read_text().splitlines()]


def watch_memory(scorer: AnswerScorer, peaks: dict[int, int], done: threading.Event) -> None:
    while not done.wait(0.01):
        for worker in scorer._workers:
            if (process := worker._process) is not None and (status := Path(f"/proc/{process.pid}/status")).exists():
                peak = re.search(r"VmPeak:\s+([0-9]+) kB", status.read_text())
                peaks[process.pid] = int(peak[1]) if peak else peaks.get(process.pid, 0)


def test_the_table_is_large_and_says_everything_once():
    assert len({(response, gold) for response, gold, _ in ROWS}) == len(ROWS) >= 500


def test_every_row_scores_as_the_table_says(scored):
    verdicts, *_ = scored
    wrong = [
        f"{response[:80]!r} for {gold[:40]!r}: {expected}, scored {verdict}"
        for (response, gold, expected), verdict in zip(ROWS, verdicts, strict=True)
        if verdict != expected
    ]
    assert wrong == []


def test_the_table_takes_bounded_time(scored):
    assert scored[1] < 240


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_no_worker_takes_more_than_its_memory(scored):
    _, _, peaks, _ = scored
    assert len(peaks) == 2  # none died
    assert all(0 < peak <= MEMORY_MB << 10 for peak in peaks.values())


def test_no_text_of_the_table_becomes_code(scored):
    told = scored[3]
    asked = {name for kind, event, names in told if (kind, event) == ("asked", "exec") for name in names}
    done = {name for kind, event, names in told if (kind, event) == ("done", "exec") for name in names}
    assert "print" in asked  # the table does reach the place where sympy makes code of an answer
    assert done <= GENERATED_NAMES
    assert [event for kind, event, _ in told if event != "exec"] == []


def test_what_no_computer_compares_is_null():
    with AnswerScorer(workers=2, timeout_s=1.5, memory_mb=512) as scorer:
        start = time.monotonic()
        assert scorer.score_many([boxed(answer) for answer in ENDLESS], [ROOT] * len(ENDLESS)) == [None] * len(ENDLESS)
        assert time.monotonic() - start < 20 * len(ENDLESS)


RULES = (extraction, choice_extraction, choices, equality, figures, lists, names, quantities, ranges, typography)
GLOBALS = [value for module in (answers, *RULES) for value in vars(module).values()]
REWRITES = [rewrite for value in GLOBALS if isinstance(value, list) for rewrite in value]
PATTERNS = [value for value in [*GLOBALS, *(pattern for pattern, _ in REWRITES)] if isinstance(value, re.Pattern)]
# What each pattern repeats, without the end it needs.
UNITS = [
    "answer", "answer*", "answer:", "answer is", ".", ".x", "...", "\\boxed{", "\\{", "{", "}", "\\", "\\\\", "\\frac",
    "\\frac1", "frac", "\\left", "\\!", "1", "1,1", "1\\,", "1{,}", "1,", ",111", "1 111", "\\,", "~", "\\quad", "$",
    "$x", "$$", "\\$", "\\(", "\\(x", "\\[", "[", "(", ",(", "(,", "-", "–", "<=", ">=", "\\leq", "π", "√", "√(",
    "√x", "\\text{", "\\text{x}", "\\text ", "¹", "*", "`", ";", "0", "1.1", ".1", "e1", "1e", "1*10^", "1/1", "+1",
    "1/", "\\frac{1}{", "a", "ab", "a1", "1a", "_", "_a", "x_", "x_{", "x=", "=", "x(x)", "cm", "cm/", "cm^2", "per",
    "square", "square a", "°C", "^\\circ", "€", "+€", "A", "(A)", "1-", "1:", "1 1", "\\int", "\\intint", "ii", "!",
    "\\sum", "\\in", "，１", "。", "\u200b", "é",
]  # fmt: skip
ATTACKS = [unit * (1000 // len(unit)) for unit in UNITS]


def test_patterns_are_found():
    assert len(PATTERNS) > 100


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.pattern[:30])
def test_no_pattern_takes_long_over_the_longest_answer(pattern):
    for attack in ATTACKS:
        for text in (attack, attack[:-1] + "\n", "1" + attack):
            start = time.process_time()
            pattern.sub("", text)
            pattern.fullmatch(text)
            assert time.process_time() - start < 0.25, text[:20]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("few", "noise"), [(25_000, 0.05), pytest.param(100_000, 0.1, marks=pytest.mark.slow)])
def test_a_response_is_read_in_linear_time(few, noise, unit):
    def seconds(chars: int) -> float:
        text = unit * (chars // len(unit))
        for response, gold in ((text, "5"), (boxed("5"), text), ("The answer is " + text, "5"), (boxed(text), "5")):
            _decide(response, gold)
            _decide(response, "B", ("5", "the figure"))
        return time.process_time() - start

    start = time.process_time()
    small = seconds(few)
    start = time.process_time()
    assert seconds(4 * few) < 8 * small + noise  # quadratic: 16 times
