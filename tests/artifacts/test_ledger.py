"""Device-seconds: every second of a step is booked once, in its phase or as other."""

import time

import pytest

from stages.artifacts.ledger import CostLedger


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
