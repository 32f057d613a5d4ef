"""Progress where there is no terminal: lines on stderr, one per interval and one at the end."""

import pytest

from stages.runtime import progress
from stages.runtime.progress import track


def test_the_end_is_reported_once(capsys):
    with track("rollout", 4, "responses") as advance:
        for _ in range(6):  # a budget may carry work past the total
            advance(1)
    out, err = capsys.readouterr()

    (line,) = err.splitlines()
    assert out == ""
    assert line.startswith("rollout: 4/4 responses, ")
    assert line.endswith(" responses/s, 0 s left")


@pytest.mark.parametrize(("total", "amount"), [(0, 0), (5, 0), (2, 5)])
def test_nothing_done_and_more_than_all_are_reported(total, amount, capsys, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    with track("evaluate", total, "answers") as advance:
        advance(amount)

    assert capsys.readouterr().err.startswith(f"evaluate: {amount}/{total} answers, ")


def test_a_rate_of_zero_is_no_time_of_a_billion_seconds(capsys, monkeypatch):
    monkeypatch.setattr("stages.runtime.progress.INTERVAL_S", 0)
    with track("rl-repair", 4, "iterations") as advance:
        advance(0)
        advance(1)

    nothing, one = capsys.readouterr().err.splitlines()
    assert nothing == "rl-repair: 0/4 iterations, none yet"
    assert one.startswith("rl-repair: 1/4 iterations, ")
    assert one.endswith(" s left")
