"""Runs as processes of their own: signals, sudden death, a disk that is full."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.trainers.tiny import PICTURE, arguments, train

LONG = ("train.steps=4000", "train.log_every=5", "train.eval_every=5", "train.checkpoint_every=5")
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}
MOST_SECONDS = 300


def command(workdir, *bindings):
    return [sys.executable, "-m", "keras_vmoe.trainers.cli", *arguments(workdir, *bindings)]


def run(workdir, *bindings, **options):
    return subprocess.run(
        command(workdir, *bindings),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        **options,
    )


def rows(workdir):
    return MetricsLog(workdir / "metrics.jsonl").rows()


def run_until(workdir, step, number, *bindings):
    """Starts a run, sends it a signal once it has logged a step, returns (exit code, stderr)."""
    process = subprocess.Popen(
        command(workdir, *bindings),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + MOST_SECONDS
    while not any(row["step"] >= step for row in rows(workdir)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, message = process.communicate(timeout=MOST_SECONDS)
    return process.returncode, message


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path, capsys):
    code, message = run_until(tmp_path, 10, signal.SIGINT, *LONG)
    assert code == 130
    assert "Traceback" not in message
    assert "stopped by SIGINT at step" in message
    assert not (tmp_path / "model.keras").exists()
    reached = rows(tmp_path)[-1]["step"]
    # Here what goes on is what counts; in a process of its own it would start for longer.
    assert train(tmp_path, *LONG, f"train.steps={reached + 2}") == 0
    assert "resume   from step" in capsys.readouterr().out
    steps = [row["step"] for row in rows(tmp_path) if row["split"] == "train"]
    assert steps == [*range(5, reached + 2, 5), reached + 2]
    assert (tmp_path / "model.keras").exists()


@pytest.mark.slow
def test_sigterm_saves_too(tmp_path):
    code, message = run_until(tmp_path, 5, signal.SIGTERM, *LONG)
    assert code == 143
    assert "stopped by SIGTERM" in message
    assert list(tmp_path.glob("checkpoints/*.index"))


@pytest.mark.slow
def test_a_killed_run_loses_only_what_came_after_its_last_checkpoint(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    length = ("train.steps=600", "train.log_every=50", "train.eval_every=50")
    length += ("train.checkpoint_every=100",)
    code, _ = run_until(killed, 200, signal.SIGKILL, *length)
    assert code == -signal.SIGKILL
    reached = rows(killed)[-1]["step"]
    # A row that death cut in the middle must not matter.
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 99999, "spl')
    resumed = run(killed, *length)
    assert resumed.returncode == 0, resumed.stderr
    began = int(re.search(r"resume   from step (\d+)", resumed.stdout)[1])
    assert reached - 150 < began <= reached
    assert run(whole, *length).returncode == 0
    for left, right in zip(rows(killed), rows(whole), strict=True):
        assert (left["step"], left["split"]) == (right["step"], right["split"])
        np.testing.assert_allclose(left["loss"], right["loss"], rtol=1e-4)


def test_a_second_process_is_told_that_the_folder_is_in_use(tmp_path, capsys):
    process = subprocess.Popen(
        command(tmp_path, *LONG),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + MOST_SECONDS
        while not rows(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        code = train(tmp_path, *LONG)
    finally:
        process.kill()
        process.wait()
    assert code == 1
    message = capsys.readouterr().err
    assert message.startswith(f"keras-vmoe: error: --workdir={tmp_path} is in use")
    assert message.count("\n") == 1


def weights(workdir):
    model = keras.models.load_model(workdir / "model.keras")
    return {variable.path: keras.ops.convert_to_numpy(variable) for variable in model.weights}


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights_bit_for_bit(tmp_path):
    """Data order, augmentation, mixing, dropout, router noise, slots and averages all go on."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    bindings = (
        *("train.steps=300", "train.log_every=7", "train.eval_every=110"),
        *("train.checkpoint_every=23", "train.augment=(@Augment(), @RandomErasing())"),
        *("train.mix=(@Mixup(), @CutMix())", "train.repeats=2", "VMoE.dropout_rate=0.1"),
        "adamw.ema_momentum=0.9",
    )
    step = random.SystemRandom().randrange(30, 260)
    code, _ = run_until(killed, step, signal.SIGKILL, *bindings)
    assert code == -signal.SIGKILL
    resumed = run(killed, *bindings)
    assert resumed.returncode == 0, resumed.stderr
    assert "resume   from step" in resumed.stdout
    assert run(whole, *bindings).returncode == 0
    ours, theirs = weights(killed), weights(whole)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=f"{name}, killed at {step}")
    for left, right in zip(rows(killed), rows(whole), strict=True):
        for name in ("step", "split", "loss", "accuracy", "auxiliary_loss"):
            assert left[name] == right[name], (name, left["step"], f"killed at {step}")


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_line_and_loses_nothing(tmp_path):
    assert train(tmp_path, "train.steps=2", PICTURE) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def limit():
        # No file may grow beyond 8 kB: the next checkpoint cannot be written.
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    full = run(tmp_path, "train.steps=4", PICTURE, preexec_fn=limit)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "keras-vmoe: error: " in full.stderr
    for name in ("model.keras", "routing.png", "checkpoints/ckpt-2.index"):
        assert (tmp_path / name).read_bytes() == before[tmp_path / name]
    assert not list(tmp_path.glob("checkpoints/ckpt-4*"))
    assert train(tmp_path, "train.steps=4", PICTURE) == 0
    assert rows(tmp_path)[-1]["step"] == 4
