import csv

from pixvox.callbacks.metrics_table import MetricsTable


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_columns_may_come_later_and_rows_of_one_step_are_joined(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv")
    table.log_metrics({"train/loss": 0.1, "epoch": 0}, step=1)
    table.log_metrics({"train/loss": 0.2, "epoch": 0}, step=2)
    table.log_metrics({"val/AP": 0.5, "epoch": 0}, step=2)
    table.write()
    assert read(table.path) == [
        {"epoch": "0", "step": "1", "train/loss": "0.1", "val/AP": ""},
        {"epoch": "0", "step": "2", "train/loss": "0.2", "val/AP": "0.5"},
    ]


def test_numbers_are_written_in_full(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv")
    table.log_metrics({"value": 1 / 3}, step=0)
    table.write()
    assert float(read(table.path)[0]["value"]) == 1 / 3


def test_resume_keeps_the_rows_before_its_step(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsTable(path)
    for step in range(5):
        first.log_metrics({"loss": float(step), "epoch": 0}, step=step)
    first.write()
    again = MetricsTable(path)
    again.keep_before(3)
    again.log_metrics({"loss": 30.0, "epoch": 1}, step=3)
    again.finalize("success")
    assert [row["loss"] for row in read(path)] == ["0.0", "1.0", "2.0", "30.0"]


def test_nothing_logged_writes_nothing(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv")
    table.finalize("success")
    assert not table.path.exists()
