"""metrics.jsonl stays readable and consistent after any stop."""

import json

import pytest

from keras_vmoe.trainers.metrics_log import MetricsLog


def row(step, split="train"):
    return {"step": step, "split": split, "loss": 0.5, "accuracy": 0.25}


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_rows_come_back(log):
    assert log.rows() == []
    log.append(row(1))
    log.append(row(1, "eval"))
    assert log.rows() == [row(1), row(1, "eval")]
    assert log.last("eval") == row(1, "eval")
    assert log.last("eval", step=2) is None


def test_every_line_is_plain_json(log):
    log.append(row(1) | {"auxiliary_loss": float("nan"), "x": float("inf")})
    read = json.loads(log.path.read_text(), parse_constant=pytest.fail)
    assert read["auxiliary_loss"] is None
    assert read["x"] is None


@pytest.mark.parametrize("broken", ['{"step": 3, "spl', "null\n", "\0\0\0"])
def test_a_line_cut_short_ends_the_rows(log, broken):
    log.append(row(1))
    with open(log.path, "a") as file:
        file.write(broken)
    assert log.rows() == [row(1)]
    log.keep_until(5)
    log.append(row(2))
    assert log.rows() == [row(1), row(2)]


def test_a_resume_drops_what_came_later(log):
    for step in (10, 20, 30):
        log.append(row(step))
        log.append(row(step, "eval"))
    log.keep_until(20)
    assert [r["step"] for r in log.rows()] == [10, 10, 20, 20]
    log.keep_until(0)
    assert log.rows() == []


def test_a_folder_that_is_gone_is_named(tmp_path):
    log = MetricsLog(tmp_path / "gone" / "metrics.jsonl")
    with pytest.raises(OSError, match=r"gone/metrics\.jsonl"):
        log.append(row(1))
