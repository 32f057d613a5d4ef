"""Device-seconds: every second of a step is booked once, in its phase or as other."""

import subprocess
import sys
import time

import pytest

from stages.artifacts.ledger import CostLedger, cpu_seconds, training_cost


def test_what_no_phase_has_is_booked_as_other_at_the_close():
    started = time.perf_counter()
    ledger = CostLedger(devices=2)
    time.sleep(0.05)
    with ledger.phase("train"):
        time.sleep(0.1)
    assert ledger.device_seconds.keys() == {"train"}
    assert ledger.device_seconds["train"] >= 0.2
    assert ledger.spent >= 0.3
    ledger.close()
    wall = time.perf_counter() - started
    assert ledger.device_seconds.keys() == {"train", "other"}
    assert ledger.device_seconds["other"] >= 0.1
    assert sum(ledger.device_seconds.values()) <= 2 * wall
    booked = dict(ledger.device_seconds)
    ledger.close()
    assert ledger.device_seconds["train"] == booked["train"]
    assert ledger.device_seconds["other"] - booked["other"] <= 2 * (time.perf_counter() - started - wall) + 0.01


def test_a_phase_that_fails_is_paid_for_too():
    ledger = CostLedger()

    def fail():
        with ledger.phase("score"):
            time.sleep(0.02)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ledger.device_seconds["score"] >= 0.02


def test_what_an_evaluation_generates_and_scores_is_evaluation():
    ledger = CostLedger(devices=2)
    with ledger.phase("generate"):
        time.sleep(0.02)
    with ledger.phase("evaluate"):
        for part in ("generate", "reward"):
            with ledger.phase(part):
                time.sleep(0.03)
        time.sleep(0.03)
    with ledger.phase("generate"):
        time.sleep(0.02)
    ledger.close()
    booked = ledger.device_seconds
    assert booked.keys() == {"generate", "evaluate", "other"}
    assert booked["evaluate"] >= 2 * 0.09
    assert 2 * 0.04 <= booked["generate"] < 2 * 0.04 + 0.1
    assert training_cost({"device_seconds": booked}) == booked["generate"] + booked["other"]


def test_a_phase_after_an_evaluation_that_failed_is_booked():
    ledger = CostLedger()
    with pytest.raises(KeyError), ledger.phase("evaluate"), ledger.phase("generate"):
        raise KeyError
    with ledger.phase("train"):
        pass
    assert ledger.device_seconds.keys() == {"evaluate", "train"}


BUSY = "import time\nwhile time.process_time() < 0.6: pass\nprint(flush=True)\nimport sys; sys.stdin.read()"


def test_on_a_cpu_work_is_booked_and_waiting_is_not():
    """A child that works counts while it lives and when it has ended, but for what a clock of ticks has not seen yet;
    time asleep does not."""
    ledger = CostLedger(clock=cpu_seconds)
    with ledger.phase("score"):
        time.sleep(0.5)
    command = [sys.executable, "-c", BUSY]
    with ledger.phase("reward"), subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        while_it_lives = ledger.spent
    assert ledger.device_seconds["score"] < 0.25
    assert 0.5 <= while_it_lives < 5
    assert 0.5 <= ledger.device_seconds["reward"] < 5
