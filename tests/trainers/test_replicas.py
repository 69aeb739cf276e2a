"""Replicas and processes that train together, each run in processes of their own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from keras_vmoe.trainers.metrics_log import MetricsLog
from tests.trainers.tiny import PICTURE

pytestmark = pytest.mark.multi_device

MOST_SECONDS = 300
MIRRORED = "train.distribution='mirrored'"
NOISE = ("VMoE.noise_std=None", "VMoE.dropout_rate=0.1")


def start(devices, workdir, *bindings, **environment):
    words = [sys.executable, "-m", "tests.trainers.run_on_devices", str(devices), str(workdir)]
    return subprocess.Popen(
        [*words, *bindings],
        env={**os.environ, "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(devices, workdir, *bindings, **environment):
    process = start(devices, workdir, *bindings, **environment)
    _, error = process.communicate(timeout=MOST_SECONDS)
    assert process.returncode == 0, error[-2000:]
    return rows(workdir)


def rows(workdir):
    return MetricsLog(workdir / "metrics.jsonl").rows()


def assert_same_losses(ones, others, metrics=("dropped", "confidence", "entropy"), **tolerance):
    for one, other in zip(ones, others, strict=True):
        assert (one["step"], one["split"]) == (other["step"], other["split"])
        np.testing.assert_allclose(one["loss"], other["loss"], **tolerance)
        assert one["accuracy"] == pytest.approx(other["accuracy"])
        if one["split"] == "train":
            np.testing.assert_allclose(one["auxiliary_loss"], other["auxiliary_loss"], rtol=1e-4)
            for name in metrics:
                key = f"encoder_block_0_moe/{name}"
                np.testing.assert_allclose(one[key], other[key], rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The rows of one device."""
    return run(1, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize("devices", [2, 4])
def test_replicas_take_the_steps_of_one_device(devices, alone, tmp_path):
    found = run(devices, tmp_path, MIRRORED, PICTURE)
    assert len(found) == 6
    assert_same_losses(found, alone, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def pairs_alone(tmp_path_factory):
    """The rows of one device that learns image-text pairs."""
    return run(1, tmp_path_factory.mktemp("pairs_alone") / "run", TASK="pairs")


@pytest.mark.parametrize("devices", [2, 4])
def test_pairs_of_all_replicas_are_told_apart(devices, pairs_alone, tmp_path):
    found = run(devices, tmp_path, MIRRORED, TASK="pairs")
    assert len(found) == 6
    # Replicas have different numbers of words: a mean over tokens is not the mean of theirs.
    assert_same_losses(found, pairs_alone, metrics=(), rtol=0, atol=1e-5)


IMAGES = (
    "train.model=@MobileVMoE",
    *(f"MobileVMoE.{size}" for size in ("patch_size=8", "num_layers=2", "num_moe_layers=1")),
    *(f"MobileVMoE.{size}" for size in ("width=8", "mlp_dim=16", "num_heads=2", "num_experts=2")),
    "MobileVMoE.superclasses=(0, 1, 0, 1, 0, 1, 0, 1, 0, 1)",
)


def test_the_router_of_images_learns_on_replicas_what_it_learns_on_one(tmp_path):
    found = run(2, tmp_path / "two", MIRRORED, *IMAGES)
    alone = run(1, tmp_path / "one", *IMAGES)
    assert_same_losses(found, alone, metrics=(), rtol=0, atol=1e-5)
    for two, one in zip(found, alone, strict=True):
        assert two["router_accuracy"] == pytest.approx(one["router_accuracy"])
        assert two["router_loss"] == pytest.approx(one["router_loss"], rel=1e-5)


def test_a_run_on_replicas_resumes_with_its_noise(tmp_path):
    options = (MIRRORED, *NOISE, "train.checkpoint_every=2", "train.keep_checkpoints=9")
    whole = run(2, tmp_path / "whole", *options)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in (tmp_path / "cut").glob("checkpoints/ckpt-[45]*"):
        path.unlink()
    (tmp_path / "cut" / "model.keras").unlink()
    again = run(2, tmp_path / "cut", *options)
    assert_same_losses(again, whole, rtol=1e-6)


NOISES = """
import keras
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_vmoe import models
from keras_vmoe.trainers import strategies

SIZES = {"image_size": 16, "patch_size": 8, "width": 8, "mlp_dim": 8, "num_heads": 2}
PARTS = {"num_layers": 1, "placement": (0,), "num_experts": 4, "num_classes": 3}
OPTIONS = {"dropout_rate": 0.5, "head_kernel_initializer": "glorot_uniform", **SIZES, **PARTS}


# One of several replicas a process: the collectives of two would be taken for each other's.
mirrored = strategies.make_strategy("mirrored")


def draws(strategy):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = models.VMoE(**OPTIONS)
    if strategy.num_replicas_in_sync > 1:
        strategies.separate_noise(model)
    images = tf.ones((2, 16, 16, 3))
    step = tf.function(lambda: strategy.run(lambda: model(images, training=True)), autograph=False)
    return [[np.array(x) for x in strategy.experimental_local_results(step())] for _ in range(2)]


(one,), (later,) = draws(strategies.make_strategy("one_device"))
(first, second), (third, fourth) = draws(mirrored)
np.testing.assert_allclose(first, one, atol=1e-5)
np.testing.assert_allclose(third, later, atol=1e-5)
for a, b in ((first, second), (third, fourth), (first, third), (second, fourth), (second, third)):
    assert np.abs(a - b).max() > 1e-3
print("apart")
"""
# The second batch of two is of one pair: the other replica gets none.
ODD_PAIRS = """
from tests.models import tiny

with mirrored.scope():
    model = tiny.limoe(noise_std=0.0)
    model.compile("sgd")
found = model.fit(tiny.pairs(3), batch_size=2, verbose=0).history
assert all(np.isfinite(value) for value, in found.values()), found
print("finite")
"""


def test_each_replica_has_noise_of_its_own_and_may_have_no_pairs():
    done = subprocess.run(
        [sys.executable, "-c", NOISES + ODD_PAIRS],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
    )
    assert done.stdout.split() == ["apart", "finite"], done.stderr[-2000:]


def cluster(workdir, *bindings, of_last=None):
    """Starts two processes that train together; `of_last` is in the environment of the second."""
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("localhost", 0))
    workers = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        options = ("train.distribution='multi_worker'", *bindings)
        environment = {"TF_CONFIG": json.dumps(task), **(of_last or {} if index else {})}
        processes.append(start(1, workdir, *options, **environment))
    return processes


def wait_for(path, processes):
    deadline = time.monotonic() + MOST_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)


def ends(processes):
    """The exit codes and what was written to standard error."""
    try:
        errors = [process.communicate(timeout=MOST_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def test_two_processes_take_the_steps_of_one(alone, tmp_path):
    codes, errors = ends(cluster(tmp_path, PICTURE))
    assert codes == [0, 0], errors
    assert_same_losses(rows(tmp_path), alone, rtol=0, atol=1e-5)
    assert (tmp_path / "model.keras").exists()


def test_a_slow_worker_is_waited_for(alone, tmp_path):
    codes, errors = ends(cluster(tmp_path, of_last={"SECONDS_A_STEP": "2"}))
    assert codes == [0, 0], errors
    found = rows(tmp_path)
    assert_same_losses(found, alone, rtol=0, atol=1e-5)
    # The chief did wait: of the rows after the first, whose step is traced, none is quick.
    assert all(row["images_per_second"] < 16 / 1.5 for row in found[1:] if row["split"] == "train")


def test_when_one_of_two_processes_is_killed_the_other_stops_and_both_resume(tmp_path):
    length = ("train.steps=4000", "train.log_every=10", "train.eval_every=4000")
    length += ("train.checkpoint_every=10", "train.keep_checkpoints=1000", *NOISE)
    processes = cluster(tmp_path, *length)
    wait_for(tmp_path / "checkpoints" / "ckpt-20.index", processes)
    processes[1].kill()
    codes, errors = ends(processes)
    assert codes[0] == 1
    last = errors[0].strip().splitlines()[-1]
    assert "another worker does not answer after step" in last
    assert "start all of them again" in last
    before = {row["step"]: row["loss"] for row in rows(tmp_path)}
    # They go on from step 10, and meet the losses that they had.
    for path in tmp_path.glob("checkpoints/ckpt-*"):
        if not path.name.startswith("ckpt-10."):
            path.unlink()
    processes = cluster(tmp_path, *length)
    wait_for(tmp_path / "checkpoints" / "ckpt-20.index", processes)
    processes[1].send_signal(signal.SIGTERM)  # one is told, both save and stop
    codes, errors = ends(processes)
    assert codes == [143, 143], errors
    after = {row["step"]: row["loss"] for row in rows(tmp_path)}
    assert after[10] == before[10]
    np.testing.assert_allclose(after[20], before[20], rtol=1e-6)
    assert "stopped by SIGTERM" in errors[0]
