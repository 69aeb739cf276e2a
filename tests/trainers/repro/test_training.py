"""Runs side by side in processes of their own."""

import pytest

from keras_vmoe.trainers.repro.training import Training, train_all
from tests.trainers.tiny import SHORT, TINY_VIT


def tiny(folder, name, *bindings):
    words = (*TINY_VIT, *SHORT, *bindings)
    return Training(name, "runs/quickstart_dense.gin", words, folder / name, steps=6)


@pytest.mark.slow
def test_they_train_and_are_not_trained_twice(tmp_path, capsys):
    runs = [tiny(tmp_path, f"seed{seed}", f"train.seed={seed}") for seed in range(3)]
    train_all(runs, processes=2)
    assert [run.step() for run in runs] == [6, 6, 6]
    assert [step for step, _ in runs[0].evaluations()] == [4, 6]
    assert runs[0].evaluations()[-1][1] == runs[0].accuracy()
    printed = capsys.readouterr().out
    for run in runs:
        assert f"{run.name}: held-out accuracy {run.accuracy():.2%}" in printed
    before = [(run.workdir / "model.keras").stat().st_mtime_ns for run in runs]
    train_all(runs, processes=2)
    assert [(run.workdir / "model.keras").stat().st_mtime_ns for run in runs] == before


@pytest.mark.slow
def test_a_failure_is_named_and_stops_the_others(tmp_path):
    long = tiny(tmp_path, "long", "train.steps=100000", "train.log_every=1")
    wrong = tiny(tmp_path, "wrong", "adamw.epsilon='small'")
    with pytest.raises(RuntimeError, match=r"wrong failed: keras-vmoe: error: .*wrong\.log"):
        train_all([long, wrong], processes=2)
    # Stopped by SIGTERM, on which it saved what it had.
    assert "stopped by SIGTERM" in long.log.read_text() or not long.workdir.exists()
