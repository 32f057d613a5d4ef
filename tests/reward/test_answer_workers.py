"""Worker processes of the answer scorer: who may end them, what that costs, and that they end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stages.reward.answers import AnswerScorer, _Worker

ROOT = Path(__file__).parents[2]
HANG = "9^{9^{9^9}}"
ENDLESS_S = 120.0
"""A time-out that no test waits for."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def boxed(answer: str) -> str:
    return f"$\\boxed{{{answer}}}$"


def roots(count: int) -> tuple[list[str], list[str]]:
    """Right responses that each need a comparison of their own, and their golds."""
    return [boxed(rf"\sqrt{{{4 * n}}}") for n in range(3, 3 + count)], [rf"2\sqrt{{{n}}}" for n in range(3, 3 + count)]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.01)


def live_pids(scorer: AnswerScorer) -> list[int]:
    return [process.pid for worker in scorer._workers if (process := worker._process) is not None]


@pytest.fixture
def starts(monkeypatch):
    """Grows by one with every worker process."""
    launched: list[_Worker] = []
    launch = _Worker._launch

    def counted(worker: _Worker) -> subprocess.Popen[bytes]:
        launched.append(worker)
        return launch(worker)

    monkeypatch.setattr(_Worker, "_launch", counted)
    return launched


def test_workers_start_for_comparisons_only_and_are_reused(starts):
    with AnswerScorer(workers=2) as scorer:
        assert sum(scorer.score_many([boxed(str(n)) for n in range(200)], [f"{n}.0" for n in range(200)])) == 200
        assert starts == []
        responses, golds = roots(12)
        for _ in range(2):
            assert scorer.score_many([*responses, boxed("7")], [*golds, "7"]) == [1.0] * 13
        assert len(starts) == 2


def test_a_worker_killed_over_a_comparison_costs_that_answer_alone(starts):
    responses, golds = [boxed(r"\sqrt{8}"), boxed(HANG), *roots(2)[0]], [r"2\sqrt{2}", r"\sqrt{2}", *roots(2)[1]]
    with AnswerScorer(workers=1, timeout_s=ENDLESS_S) as scorer:
        assert scorer.score_many(responses[:1], golds[:1]) == [1.0]
        (pid,) = live_pids(scorer)
        busy = cpu_seconds(pid) + 1.5

        def kill_when_busy() -> None:
            wait_until(lambda: cpu_seconds(pid) > busy, 60)
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill_when_busy)
        killer.start()
        assert scorer.score_many(responses, golds) == [1.0, None, 1.0, 1.0]
        killer.join()
        assert len(starts) == 2


@pytest.mark.slow
def test_workers_killed_again_and_again_cost_an_answer_each_at_most(starts):
    responses, golds = roots(200)
    with AnswerScorer(workers=2, timeout_s=ENDLESS_S) as scorer:
        assert scorer.score_many([boxed(r"\sqrt{8}")], [r"2\sqrt{2}"]) == [1.0]
        ready = max(cpu_seconds(pid) for pid in live_pids(scorer))
        verdicts: list[float | None] = []
        batch = threading.Thread(target=lambda: verdicts.extend(scorer.score_many(responses, golds)))
        batch.start()
        killed: set[int] = set()
        while batch.is_alive() and len(killed) < 4:
            for pid in set(live_pids(scorer)) - killed:
                if not has_ended(pid) and cpu_seconds(pid) > ready + 0.1:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.01)
        batch.join()
        assert killed
        assert set(verdicts) <= {1.0, None}
        assert verdicts.count(None) <= len(killed)
        assert len(starts) <= 2 + len(killed)
        assert scorer.score_many(responses, golds) == [1.0] * 200


def test_a_worker_killed_while_it_starts_is_started_again(starts):
    with AnswerScorer(workers=1) as scorer:

        def kill_at_once() -> None:
            wait_until(lambda: live_pids(scorer), 60)
            os.kill(live_pids(scorer)[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_at_once)
        killer.start()
        assert scorer.score_many([boxed(r"\sqrt{8}")], [r"2\sqrt{2}"]) == [1.0]
        killer.join()
        assert len(starts) == 2


def test_a_worker_out_of_time_costs_that_answer_alone(starts):
    responses, golds = roots(2)
    with AnswerScorer(workers=1, timeout_s=3.0) as scorer:
        assert scorer.score_many([boxed(HANG), *responses], [r"\sqrt{2}", *golds]) == [None, 1.0, 1.0]
        assert len(starts) == 2


def test_a_worker_out_of_memory_costs_that_answer_alone(starts):
    responses, golds = roots(2)
    huge = r"\operatorname{eye}(999999)"
    with AnswerScorer(workers=1, timeout_s=ENDLESS_S, memory_mb=200) as scorer:
        assert scorer.score_many([boxed(huge), *responses], [r"\sqrt{2}", *golds]) == [None, 1.0, 1.0]
        assert len(starts) == 2


def test_a_worker_that_keeps_memory_is_replaced_before_others_lack_it(starts):
    # sympy's caches keep the three megabytes of such a number; half of the memory is spent after a few.
    responses, golds = [boxed(rf"2^{{8000000}}+{n}+\sqrt{{3}}") for n in range(10)], [r"\sqrt{2}"] * 10
    with AnswerScorer(workers=1, timeout_s=ENDLESS_S, memory_mb=160) as scorer:
        assert scorer.score_many(responses, golds) == [0.0] * 10
        assert 2 <= len(starts) <= 5
        assert scorer.score_many(*roots(2)) == [1.0, 1.0]


DRIVER = r"""
import json, signal, sys
from stages.reward.answers import AnswerScorer

interrupts = []
signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
responses, golds, timeout_s = json.load(sys.stdin)
with AnswerScorer(workers=1, timeout_s=timeout_s) as scorer:
    assert scorer.score_many([r"\boxed{\sqrt{8}}"], [r"2\sqrt{2}"]) == [1.0]
    print(scorer._workers[0]._process.pid, flush=True)
    print(json.dumps([scorer.score_many(responses, golds), len(interrupts)]), flush=True)
    sys.stdin = open(sys.argv[1])  # a FIFO that nobody writes: wait
"""


@pytest.fixture
def drive(tmp_path):
    """Starts an interpreter that scores the pairs, with its process group its own; returns it and its worker's pid."""
    drivers: list[subprocess.Popen[bytes]] = []
    os.mkfifo(tmp_path / "nothing")

    def start(responses: list[str], golds: list[str], timeout_s: float) -> tuple[subprocess.Popen[bytes], int]:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path / "nothing")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        drivers.append(driver)
        driver.stdin.write(json.dumps([responses, golds, timeout_s]).encode())
        driver.stdin.close()
        return driver, int(driver.stdout.readline())

    yield start
    for driver in drivers:
        driver.kill()
        driver.wait()
        driver.stdout.close()


def test_an_interrupt_of_the_terminal_leaves_verdicts_as_they_are(drive):
    responses, golds = roots(30)
    driver, worker = drive(responses, golds, ENDLESS_S)
    for _ in range(5):
        os.killpg(driver.pid, signal.SIGINT)
        time.sleep(0.1)
    verdicts, interrupts = json.loads(driver.stdout.readline())
    assert interrupts > 0
    assert verdicts == [1.0] * 30
    assert not has_ended(worker)


def test_an_idle_worker_ends_with_a_parent_that_is_killed(drive):
    driver, worker = drive([], [], ENDLESS_S)
    assert json.loads(driver.stdout.readline()) == [[], 0]
    assert not has_ended(worker)
    driver.kill()
    wait_until(lambda: has_ended(worker), 20)


@pytest.mark.slow
def test_a_busy_worker_outlives_a_parent_that_is_killed_by_two_time_outs_at_most(drive):
    driver, worker = drive([boxed(HANG)], [r"\sqrt{2}"], 4.0)
    time.sleep(0.5)
    driver.kill()
    driver.wait()
    assert not has_ended(worker)
    wait_until(lambda: has_ended(worker), 30)
