"""Progress: where there is no terminal lines on stderr, one per interval and one at the end, on a terminal a bar."""

import re

import pyarrow.parquet as pq
import pytest

from stages.artifacts.columns import METRICS
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.recipe import load_recipe
from stages.runtime import progress
from stages.runtime.progress import track
from stages.s1_sft_repair import SftRepair
from stages.training.metrics import MetricsLog


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


def test_a_line_ends_with_what_was_measured_last(capsys, monkeypatch):
    monkeypatch.setattr("stages.runtime.progress.INTERVAL_S", 0)
    with track("train-policy", 4, "trajectories") as advance:
        advance(2, "loss 0.5")
        advance(2, "loss 0.25")
        advance(0)

    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"train-policy: 2/4 trajectories, .* s left; loss 0\.5", first)
    assert second.endswith(" s left; loss 0.25")
    assert third.endswith(" s left")


def test_a_bar_has_it_on_a_line_of_its_own(capsys, monkeypatch):
    """In a narrow terminal, whose line the bar fills."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    with track("train-policy", 4, "trajectories") as advance:
        advance(2, "loss 0.5")
        advance(2, "loss 0.25")

    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    *_, bar, measured = [line.strip() for line in re.split(r"[\r\n]+", written) if line.strip()]
    assert bar.startswith("train-policy")
    assert "4/4 trajectories" in bar
    assert measured == "loss 0.25"


def test_the_words_are_of_the_last_step_alone():
    """All `add`s of it, what it measured again as it was at last; large numbers whole."""
    log = MetricsLog()
    assert log.last_step() == ""
    log.add(1, {"loss": 0.75, "reward_mean": 0.5, "kl_old/correct": 0.1})
    log.add(2, {"response_length": 12345.6, "kl_old/repair": 0.00021, "kl_old/error": 0.02, "loss": -1 / 3})
    assert log.last_step() == "loss -0.333, kl_old/error 0.02, kl_old/repair 0.00021, response_length 12346"
    log.add(2, {"repair_reward": 0.5, "accuracy": 1.0, "response_length": 99.96})
    assert (
        log.last_step() == "loss -0.333, repair_reward 0.5, kl_old/error 0.02, kl_old/repair 0.00021, "
        "response_length 100"
    )


def test_supervised_training_shows_its_loss(tmp_path, digits, base_dir, capsys):
    pq.write_table(pq.read_table(digits / "repair_set.parquet").slice(0, 8), tmp_path / "repair_set.parquet")
    recipe = load_recipe("digits", ["sft.epochs=1", "sft.batch_size=4", "sft.heldout_share=0.1"])
    execute(SftRepair(recipe, tmp_path / "repair_set.parquet", base_dir, "policy"), tmp_path / "out")

    metrics = list(iterate_rows(tmp_path / "out" / "metrics.parquet", METRICS))
    *_, loss = [row["value"] for row in metrics if row["metric"] == "loss"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sft-repair: ")]
    assert line.endswith(f" s left; loss {loss:.3g}")
