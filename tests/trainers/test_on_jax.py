"""`KERAS_BACKEND=jax keras-vmoe train`: the numbers of TensorFlow, and what is refused."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vmoe import models
from keras_vmoe.trainers import cli, jax_run
from keras_vmoe.trainers.few_shot_evaluation import FewShot
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.workdir import Workdir
from tests.support.xla import COMPILE_FAST
from tests.trainers.tiny import PICTURE, arguments

ROOT = Path(__file__).resolve().parents[2]


def environment(backend, devices=None):
    names = {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    cut = "" if devices is None else f" --xla_force_host_platform_device_count={devices}"
    return {**os.environ, **names, "XLA_FLAGS": COMPILE_FAST + cut}


def run(workdir, *words, backend="jax", devices=None):
    return subprocess.run(
        [*(sys.executable, "-W", "ignore", "-m"), "tests.trainers.jax_program", workdir, *words],
        env=environment(backend, devices),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run on one JAX device."""
    workdir = tmp_path_factory.mktemp("jax") / "run"
    done = run(workdir, PICTURE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a run that is interrupted cannot go on" in done.stdout
    assert "wrote    config.gin, metrics.jsonl, model.keras, routing.png" in done.stdout
    return workdir


def assert_same_rows(found, wanted):
    found, wanted = (MetricsLog(folder / "metrics.jsonl").rows() for folder in (found, wanted))
    assert len(wanted) == 6  # training: 2, 3, 4, 6; held out: 4, 6
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - {"images_per_second", "split"}:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)


@pytest.mark.jax
@pytest.mark.multi_device
def test_a_run_on_jax_is_the_run_on_tensorflow(finished, tmp_path):
    done = run(tmp_path / "run", backend="tensorflow")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_rows(finished, tmp_path / "run")
    # Both files load here, on TensorFlow, and hold the same average of the weights.
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype("uint8")
    files = (folder / "model.keras" for folder in (finished, tmp_path / "run"))
    ours, theirs = (keras.models.load_model(file) for file in files)
    assert isinstance(ours, models.Classifier)
    assert ours.class_names == theirs.class_names
    ours, theirs = (model.predict(images, verbose=0) for model in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.jax
@pytest.mark.multi_device
def test_a_dense_model_is_split_by_its_images_alone(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "keras_vmoe.trainers.cli", "train"]
    command += ["--gin_file=runs/quickstart_dense.gin", "--mesh=batch:2,expert:2"]
    command += ["--gin_bindings=train.steps=2", f"--workdir={tmp_path}"]
    done = subprocess.run(
        command, env=environment("jax"), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert MetricsLog(tmp_path / "metrics.jsonl").rows()[-1]["step"] == 2


@pytest.mark.jax
@pytest.mark.multi_device
@pytest.mark.parametrize("words", [["--mesh=batch:2,expert:2"], []])
def test_on_four_devices_it_is_the_run_of_one(finished, tmp_path, words):
    # A mesh that is asked for makes its CPUs itself.
    done = run(tmp_path / "run", *words, PICTURE, devices=None if words else 4)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"JaxMesh(batch={'2, expert=2' if words else '4, expert=1'})" in done.stdout
    assert_same_rows(tmp_path / "run", finished)


@pytest.mark.jax
@pytest.mark.multi_device
def test_a_finished_run_is_finished(finished):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    done = run(finished, "train.log_every=3")  # which changes nothing of what is trained
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"already trained to step 6 in {finished}: held-out accuracy" in done.stdout
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.jax
@pytest.mark.multi_device
def test_what_cannot_be_is_one_line(finished, tmp_path):
    before = (finished / "metrics.jsonl").read_bytes()
    for folder, word, message in (
        (finished, "train.seed=1", "holds a run; training on JAX cannot go on from it"),
        (tmp_path, "--tpu=local", "training on JAX has no replicas"),
        (tmp_path, "--mesh=batch:16,expert:1", "must be a multiple of 16"),
    ):
        done = run(folder, word)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert message in done.stderr.splitlines()[-1]
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.jax
@pytest.mark.multi_device
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_between_two_steps(tmp_path, number, code):
    words = arguments(tmp_path, "train.steps=100000")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "keras_vmoe.trainers.cli", *words],
        env=environment("jax"),
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.5)
    process.send_signal(number)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == code, messages[-3000:]
    assert "its weights are lost" in messages.splitlines()[-1]


FEW_SHOT = FewShot(dataset="digits")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("distribution", "mirrored"),
        ("tpu", "local"),
        ("init_from", "workdir/other"),
        ("few_shot", FEW_SHOT),
        ("retokenization", ((1, 16, 5),)),
    ],
)
def test_what_only_tensorflow_has_is_refused(name, value):
    config = {"distribution": "one_device", "tpu": None, "init_from": None, "measurements": ()}
    config["retokenization"] = ()
    jax_run.require_supported(types.SimpleNamespace(**config))
    given = {"measurements": (value,)} if name == "few_shot" else {name: value}
    with pytest.raises(ValueError, match=f"^train.{name}.*unset KERAS_BACKEND") as caught:
        jax_run.require_supported(types.SimpleNamespace(**{**config, **given}))
    assert ("takes all devices" in str(caught.value)) == (name in ("distribution", "tpu"))
    assert "object at" not in str(caught.value)


def test_a_folder_with_anything_saved_is_refused(tmp_path):
    jax_run.require_empty(Workdir(tmp_path))
    row = {"step": 2, "split": "train", "loss": 1.0, "accuracy": 0.5}
    for name in ("metrics.jsonl", "model.keras", "checkpoints"):
        workdir = Workdir(tmp_path / name)
        if name == "metrics.jsonl":
            workdir.metrics.append(row)
        elif name == "checkpoints":
            workdir.checkpoints.mkdir()
            (workdir.checkpoints / "ckpt-2.index").touch()
        else:
            workdir.model.touch()
        with pytest.raises(ValueError, match="holds a run"):
            jax_run.require_empty(workdir)


def test_without_jax_the_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(arguments(tmp_path / "run")) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "pip install 'keras-vmoe[jax]'" in printed
    assert not (tmp_path / "run").exists()
