"""Device-seconds: every second of a step is booked once, in its phase or as other."""

import time

import pytest

from stages.artifacts.ledger import CostLedger, training_cost


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
