"""Distribution strategies by the names that gin files use."""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Callable

import keras
import tensorflow as tf

from keras_vmoe.trainers.config import DISTRIBUTIONS, MESH, MIRRORED, MULTI_WORKER, ONE_DEVICE, TPU

# Between the seeds of two replicas: odd, so that no two of 2^32 are the same.
_APART = 2654435761

_OF_MESH = "accelerators of this machine (TPUs, else GPUs, else the CPU)"

_NO_CLUSTER = (
    "train.distribution='multi_worker' needs the environment variable TF_CONFIG in every process, "
    'such as {"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", '
    '"index": 0}}'
)


def make_strategy(name: str, tpu: str | None = None) -> tf.distribute.Strategy:
    """Returns the strategy of a `train.distribution`.

    Call it before anything else of TensorFlow: collective operations and TPU systems are set up at
    the start of a process.

    Args:
        name: "one_device": the first GPU, or the CPU where there is none; "mirrored": all GPUs of
            this machine, or its (logical) CPUs where there is none; "multi_worker": the processes
            that TF_CONFIG lists; "tpu": a TPU; "mesh": no strategy, for DTensor does the work.
        tpu: the TPU's name or address; "local" or None for that of this machine.

    Returns:
        The strategy.

    Raises:
        ValueError: an unknown name, or no cluster or TPU where one is named.

    Example:
        >>> make_strategy("one_device").num_replicas_in_sync
        1
    """
    if name not in DISTRIBUTIONS:
        known = ", ".join(map(repr, DISTRIBUTIONS))
        raise ValueError(f"train.distribution={name!r} is unknown; known: {known}")
    if tpu is not None and name != TPU:
        of_mesh = f": a mesh takes the {_OF_MESH} without being told" if name == MESH else ""
        raise ValueError(
            f"train.tpu={tpu!r} is of train.distribution='tpu', but that is {name!r}{of_mesh}; "
            "leave train.tpu out"
        )
    if name == MESH:
        return tf.distribute.get_strategy()
    if name == ONE_DEVICE:
        gpus = tf.config.list_physical_devices("GPU")
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    if name == MIRRORED:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == MULTI_WORKER:
        task(name)
        return tf.distribute.MultiWorkerMirroredStrategy()
    return _tpu(tpu)


def describe(strategy: tf.distribute.Strategy) -> str:
    """Returns what a strategy trains on, in words.

    Args:
        strategy: of `make_strategy`; not that of a mesh.

    Example:
        >>> describe(make_strategy("one_device"))
        '1 replica, OneDeviceStrategy on CPU:0'
    """
    count = strategy.num_replicas_in_sync
    specs = [tf.DeviceSpec.from_string(name) for name in strategy.extended.worker_devices]
    names = [f"{spec.device_type}:{spec.device_index}" for spec in specs]
    # Of several processes these are the devices of this one.
    where = "on" if len(names) == count else "here on"
    shown = names if len(names) <= 8 else [names[0], "…", names[-1]]
    kind = type(strategy).__name__.removesuffix("V1")
    return f"{count} replica{'s' * (count > 1)}, {kind} {where} {', '.join(shown)}"


def task(name: str) -> tuple[int, int]:
    """Returns how many processes train together, and which of them this is, the chief being 0.

    Args:
        name: a `train.distribution`.

    Raises:
        ValueError: if "multi_worker" finds no cluster in TF_CONFIG.

    Example:
        >>> task("one_device")
        (1, 0)
    """
    if name != MULTI_WORKER:
        return 1, 0
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise ValueError(f"TF_CONFIG is not set: {_NO_CLUSTER}")
    try:
        cluster = json.loads(text)
        count, index = len(cluster["cluster"]["worker"]), int(cluster["task"]["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"TF_CONFIG={text} cannot be read ({error!r}): {_NO_CLUSTER}") from error
    if not 0 <= index < count:
        raise ValueError(f"TF_CONFIG has task index {index}, but {count} workers: {_NO_CLUSTER}")
    return count, index


def _tpu(tpu: str | None) -> tf.distribute.Strategy:
    named = tpu not in (None, "local")
    where = f"the TPU {tpu!r}" if named else "a TPU of this machine"
    try:
        if named and "://" in tpu:
            _knock(tpu)
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu if named else "local")
        if named:
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"train.distribution='tpu': {where} does not answer ({reason}); run on a TPU VM, or "
            "name one by --tpu=NAME; on other machines leave train.distribution at 'one_device'"
        ) from error


def _knock(address: str) -> None:
    """Fails at once where TensorFlow would wait for minutes for a server that is not there."""
    host, _, port = address.partition("://")[2].partition(":")
    socket.create_connection((host, int(port or 8470)), timeout=5.0).close()


def distribute(
    strategy: tf.distribute.Strategy,
    make: Callable[[int, int], tf.data.Dataset],
    batch_size: int,
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Spreads batches over replicas: each takes its part of a global batch, in their order.

    Args:
        strategy: whose replicas.
        make: from the number of processes that read data and the index of one to the batches of
            that one, `batch_size / number` images each.
        batch_size: of all replicas.

    Returns:
        What gives each replica `batch_size / replicas` images. A single replica reads the data as
        it is: a distributed iterator would only cost time there.

    Raises:
        ValueError: if the replicas cannot share a batch evenly.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return make(1, 0)
    check_batch_size("batch_size", batch_size, replicas)

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        batches = make(context.num_input_pipelines, context.input_pipeline_id)
        return batches.rebatch(batch_size // replicas, drop_remainder=True)

    return strategy.distribute_datasets_from_function(of_worker)


def check_batch_size(name: str, batch_size: int, replicas: int) -> None:
    """Makes sure that replicas can share batches evenly.

    Raises:
        ValueError: if not; it names the nearest sizes that do.
    """
    if batch_size % replicas:
        below = batch_size // replicas * replicas
        near = f"{below} or {below + replicas}" if below else f"{replicas}"
        raise ValueError(
            f"train.{name}={batch_size} does not divide by the {replicas} replicas that share a "
            f"batch; make it {near}"
        )


def check_agreement(strategy: tf.distribute.Strategy, step: int) -> None:
    """Makes sure that all replicas go on from the same step.

    Raises:
        ValueError: if not: they do not see the same checkpoints.
    """

    def sums() -> tf.Tensor:
        mine = tf.constant([step, step * step], tf.int64)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, mine)

    found = tf.function(lambda: strategy.run(sums), autograph=False)()
    first, second = strategy.experimental_local_results(found)[0].numpy()
    count = strategy.num_replicas_in_sync
    if (first, second) != (count * step, count * step * step):
        raise ValueError(
            f"this worker goes on from step {step}, others from another one (the mean is "
            f"{first / count:g}): --workdir must be one folder that all workers see"
        )


def separate_noise(model: keras.Model) -> None:
    """Makes each replica draw noise and dropout masks of its own.

    The states of Keras' seed generators are the same on all replicas, and so would be their draws.
    The first replica's stay what they are without a strategy.

    Args:
        model: a built model.
    """
    for layer in model._flatten_layers():
        for generator in layer._seed_generators:
            generator.next = functools.partial(_next_of_replica, type(generator).next, generator)


def _next_of_replica(
    draw: Callable[..., tf.Tensor], generator: keras.random.SeedGenerator, ordered: bool = True
) -> tf.Tensor:
    seed = draw(generator, ordered)
    context = tf.distribute.get_replica_context()
    if context is None:
        return seed
    number = tf.cast(context.replica_id_in_sync_group, tf.int64) * _APART
    return seed + tf.cast(tf.stack([number % 2**32, 0]), seed.dtype)
