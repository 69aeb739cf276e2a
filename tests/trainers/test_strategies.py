"""Names of distribution strategies, and what is said where one cannot be had."""

import json
import types

import pytest
import tensorflow as tf

from keras_vmoe.trainers import strategies
from tests.trainers.tiny import train


@pytest.fixture(autouse=True)
def no_metadata_server(monkeypatch):
    """Where libtpu is installed, it asks a server of Google's cloud for a minute elsewhere."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")


def test_one_device_and_all_of_them():
    assert strategies.make_strategy("one_device").num_replicas_in_sync == 1
    mirrored = strategies.make_strategy("mirrored")
    assert mirrored.num_replicas_in_sync == len(tf.config.list_logical_devices("CPU"))


@pytest.mark.parametrize(
    ("name", "tpu", "message"),
    [
        ("pod", None, "train.distribution='pod' is unknown; known: 'one_device', 'mirrored'"),
        ("mirrored", "v5", "train.tpu='v5' is of train.distribution='tpu', but that is 'mirrored'"),
        ("mesh", "local", r"a mesh takes the accelerators of this machine \(TPUs, else GPUs"),
        ("tpu", None, "a TPU of this machine does not answer .*; run on a TPU VM"),
        ("tpu", "local", "a TPU of this machine does not answer"),
        ("tpu", "grpc://localhost:1", "the TPU 'grpc://localhost:1' does not answer .*refused"),
    ],
)
def test_what_cannot_be_had(name, tpu, message):
    with pytest.raises(ValueError, match=message) as caught:
        strategies.make_strategy(name, tpu)
    assert "\n" not in str(caught.value)


def test_a_strategy_in_words():
    one = strategies.make_strategy("one_device")
    assert strategies.describe(one) == "1 replica, OneDeviceStrategy on CPU:0"
    devices = [f"/job:worker/replica:0/task:1/device:GPU:{i}" for i in range(9)]
    several = types.SimpleNamespace(
        num_replicas_in_sync=2, extended=types.SimpleNamespace(worker_devices=devices[:2])
    )
    assert strategies.describe(several) == "2 replicas, SimpleNamespace on GPU:0, GPU:1"
    several.extended.worker_devices, several.num_replicas_in_sync = devices, 18
    assert strategies.describe(several) == "18 replicas, SimpleNamespace here on GPU:0, …, GPU:8"


def task(**parts):
    whole = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    return json.dumps(whole | parts)


def test_the_task_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", task())
    assert strategies.task("multi_worker") == (2, 1)
    assert strategies.task("mirrored") == (1, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "TF_CONFIG is not set.*needs the environment variable TF_CONFIG in every process"),
        ("{", r"TF_CONFIG=\{ cannot be read"),
        (task(cluster={}), "cannot be read .*KeyError"),
        (task(task={"index": 2}), "TF_CONFIG has task index 2, but 2 workers"),
    ],
)
def test_a_cluster_that_is_not_one(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=message):
        strategies.make_strategy("multi_worker")


@pytest.mark.parametrize(("size", "near"), [(18, "16 or 20"), (3, "make it 4")])
def test_replicas_share_a_batch_evenly(size, near):
    message = f"train.batch_size={size} does not divide by the 4 replicas.*{near}"
    with pytest.raises(ValueError, match=message):
        strategies.check_batch_size("batch_size", size, 4)
    strategies.check_batch_size("batch_size", 20, 4)


def test_one_replica_reads_the_data_as_it_is():
    batches = tf.data.Dataset.range(3)
    strategy = strategies.make_strategy("one_device")
    assert strategies.distribute(strategy, lambda *shard: batches, 4) is batches


def test_without_a_tpu_the_command_is_one_line(tmp_path, capsys):
    assert train(tmp_path, "train.distribution='tpu'") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train.distribution='tpu'" in error
    assert "leave train.distribution at 'one_device'" in error


def test_few_shot_is_of_single_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", task())
    bindings = ("train.distribution='multi_worker'", "train.few_shot=@FewShot()")
    assert train(tmp_path, *bindings) == 1
    assert "use keras-vmoe fewshot --workdir=DIR afterwards" in capsys.readouterr().err


def test_steps_agree():
    strategy = strategies.make_strategy("one_device")
    strategies.check_agreement(strategy, 7)
