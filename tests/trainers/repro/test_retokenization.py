"""`keras-vmoe repro retokenization`: phases, time and FLOPs by hand, the picture, the command."""

import csv
import json

import pytest

from keras_vmoe.trainers import cli
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.repro import retokenization, retokenization_figure
from keras_vmoe.trainers.repro.training import Training, configure
from keras_vmoe.trainers.retokenization import phases_of

SCHEDULES = tuple(retokenization.SCHEDULES)
TINY = ("dataset.name='digits'", "train.steps=30", "train.batch_size=50")


def made_up(gain=0.01):
    curves = {
        name: [[(300, 0.5 + seed / 100), (600, 0.8 + seed / 100 + gain * n)] for seed in range(3)]
        for n, name in enumerate(SCHEDULES)
    }
    # The coarse phases are 8 and 4 times as fast.
    speeds = {16: 80.0, 8: 40.0, 4: 10.0}
    saved = dict.fromkeys(SCHEDULES, 0.5)
    macs = {16: 1, 8: 2, 4: 20}
    return retokenization.Measured((0, 1, 2), 600, 10, saved, macs, curves, speeds)


def test_time_and_flops_by_hand():
    found = made_up()
    assert found.seconds("none") == pytest.approx(600.0)
    # A third each: 200 steps of 10 images at 80, 40 and 10 images a second.
    assert found.seconds("thirds") == pytest.approx(25.0 + 50.0 + 200.0)
    assert found.time_saved("thirds") == pytest.approx(1 - 275 / 600)
    assert found.flops("none", 100) == 6 * 20 * 10 * 100
    assert found.flops("thirds", 300) == pytest.approx(6 * 10 * (200 * 1 + 100 * 2))
    assert found.flops("late", 600) == pytest.approx(6 * 10 * (300 * 1 + 200 * 2 + 100 * 20))


def test_claims_are_of_the_gain_over_full_tokens():
    assert [claim.verdict for claim in retokenization.claims(made_up(0.01))] == ["holds"] * 3
    lost = retokenization.claims(made_up(-0.01))
    assert [claim.verdict for claim in lost] == ["does not hold"] * 3
    text = retokenization.table(made_up())
    line = next(line for line in text.splitlines() if line.startswith("thirds"))
    assert line.split() == ["thirds", "33%,", "67%", "50.0%", "54.2%", "83.00", "±", "0.58"]


def test_runs_differ_by_phases_and_seed_alone(tmp_path):
    config, steps, epochs = retokenization._plan(TINY)
    assert (steps, config.batch_size) == (30, 50)
    runs = retokenization.trainings(tmp_path, [0, 1], epochs, steps, TINY)
    assert [run.workdir.name for run in runs[:4]] == [f"{name}-0" for name in SCHEDULES]
    # Coarse phases end after whole shares of the steps.
    per_epoch = steps / epochs
    ends = []
    for run in runs[4:]:
        config = configure(run)
        assert config.seed == 1
        found = phases_of(config.retokenization)
        assert [(one.stride, one.dilation) for one in found] == [(16, 5), (8, 2)][: len(found)]
        ends.append([round(one.until_epoch * per_epoch, 6) for one in found])
    assert ends == [[], [5, 10], [10, 20], [15, 25]]


def test_speeds_are_medians_of_each_stride(tmp_path):
    of_runs = (((5.0, 16), (1.0, 4), (2.0, 4), (90.0, 4)), ((7.0, 4),), ((3.0, 4),))
    for number, rows in enumerate(of_runs):
        (tmp_path / str(number)).mkdir()
        log = MetricsLog(tmp_path / str(number) / "metrics.jsonl")
        for speed, stride in rows:
            row = {"step": 1, "split": "train", "images_per_second": speed}
            log.append({**row, "token_stride": stride})
        log.append({"step": 1, "split": "eval", "images_per_second": 1000.0})
    assert retokenization.speeds(sorted(tmp_path.iterdir())) == {16: 5.0, 4: 3.0}


def test_picture_and_data(tmp_path):
    retokenization_figure.plot_retokenization(made_up(), tmp_path / "repro.png")
    assert (tmp_path / "repro.png").stat().st_size > 10_000
    rows = list(csv.DictReader((tmp_path / "repro.csv").open()))
    assert [row["series"] for row in rows] == [name for name in SCHEDULES for _ in range(2)]
    assert float(rows[0]["tflops"]) == pytest.approx(6 * 20 * 10 * 300 / 1e12)


def test_the_command_trains_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retokenization, "train_all", lambda runs, processes: None)
    monkeypatch.setattr(Training, "evaluations", lambda run: [(30, 0.5 + len(run.name) / 100)])
    monkeypatch.setattr(retokenization, "speeds", lambda workdirs: {16: 9.0, 8: 3.0, 4: 1.0})
    words = [f"--gin_bindings={word}" for word in TINY]
    assert cli.main(["repro", "retokenization", f"--out={tmp_path}", "--seeds=2", *words]) == 0
    assert "8 runs" in capsys.readouterr().out
    content = json.loads((tmp_path / "repro.json").read_text())
    # Of the FLOPs of the model at 64 pixels; thirds at 1/16 and 1/4 of the tokens.
    assert 0.5 < content["saved"]["thirds"] < 0.6
    assert content["time_saved"]["none"] == 0.0
    assert content["time_saved"]["thirds"] == pytest.approx(1 - (1 / 9 + 1 / 3 + 1) / 3)
    assert (tmp_path / "repro.png").exists()
