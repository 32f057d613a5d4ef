"""Device-seconds: every second of a step is booked once, in its phase or as other."""

import subprocess
import sys
import time

import pytest

from stages.artifacts.ledger import CostLedger, cpu_seconds, training_cost


class Clock:
    """Stands still until it is told that time passes."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def test_what_no_phase_has_is_booked_as_other_at_the_close(clock):
    ledger = CostLedger(devices=2, clock=clock)
    clock.wait(1)
    with ledger.phase("train"):
        clock.wait(4)
    assert ledger.device_seconds == {"train": 8}
    assert ledger.spent == 10
    clock.wait(16)
    ledger.close()
    assert ledger.device_seconds == {"train": 8, "other": 34}
    clock.wait(64)
    ledger.close()
    assert ledger.device_seconds == {"train": 8, "other": 34 + 128}


def test_what_is_noted_inside_a_phase_has_its_seconds_and_the_others(clock):
    """It changes nothing: each second is booked once in the end."""
    ledger = CostLedger(devices=2, clock=clock)
    clock.wait(1)
    with ledger.phase("train"):
        clock.wait(4)
    with ledger.phase("save"):
        clock.wait(16)
        assert ledger.so_far() == {"train": 8, "save": 32, "other": 2}
        assert ledger.spent == 42
        clock.wait(32)
    ledger.close()
    assert ledger.device_seconds == {"train": 8, "save": 96, "other": 2}


def test_a_phase_that_fails_is_paid_for_too(clock):
    ledger = CostLedger(clock=clock)

    def fail():
        with ledger.phase("score"):
            clock.wait(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ledger.device_seconds == {"score": 2}


def test_what_an_evaluation_generates_and_scores_is_evaluation(clock):
    ledger = CostLedger(devices=2, clock=clock)
    with ledger.phase("generate"):
        clock.wait(1)
    with ledger.phase("evaluate"):
        for part in ("generate", "reward"):
            with ledger.phase(part):
                clock.wait(4)
        clock.wait(16)
    clock.wait(32)
    with ledger.phase("generate"):
        clock.wait(64)
    ledger.close()
    assert ledger.device_seconds == {"generate": 2 * (1 + 64), "evaluate": 2 * (4 + 4 + 16), "other": 2 * 32}
    assert training_cost({"device_seconds": ledger.device_seconds}) == 2 * (1 + 64 + 32)


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
        time.sleep(1)  # processes are listed once a second
        while_it_lives = ledger.spent
    assert ledger.device_seconds["score"] < 0.25
    assert 0.5 <= while_it_lives < 5
    assert 0.5 <= ledger.device_seconds["reward"] < 5
