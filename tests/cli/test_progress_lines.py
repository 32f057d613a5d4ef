"""Progress where there is no terminal: lines on stderr, one per interval and one at the end."""

import pytest

from stages import progress
from stages.progress import track


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
