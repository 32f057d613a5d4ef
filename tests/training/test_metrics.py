import tracemalloc

from stages.training.metrics import MetricRows, MetricsLog


def test_rows_come_back_as_they_were_added():
    log = MetricsLog()
    log.add(1, {"loss": 0.5, "ratio": 1.25})
    log.add(2, {"loss": 0.25})

    rows = [(1, "loss", 0.5), (1, "ratio", 1.25), (2, "loss", 0.25)]
    assert [(row["step"], row["metric"], row["value"]) for row in log.rows] == rows
    assert log.rows[1:] == [log.rows[1], log.rows[2]]
    assert log.rows[-1] == {"step": 2, "metric": "loss", "value": 0.25}


def test_a_row_takes_few_bytes():
    rows = MetricRows()
    tracemalloc.start()
    for step in range(10_000):
        rows.append(step, f"metric/{step % 5}", step / 3)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 10_000 * 26
