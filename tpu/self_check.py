"""Prints versions, devices and the loss of one training step of a tiny V-MoE.

Usage:
    python tpu/self_check.py                  on the TPU of this machine, or else on its CPU
    python tpu/self_check.py --require_tpu    fails where there is no TPU
    python tpu/self_check.py --tpu=NAME       on a TPU by its name
    python tpu/self_check.py --tpu=none       on the CPU or GPU, whatever there is
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

PACKAGES = ("keras_vmoe", "keras", "tensorflow", "tensorflow-tpu", "libtpu", "numpy")
IMAGES_PER_REPLICA = 8
NUM_CLASSES = 4


def arguments(argv: list[str]) -> argparse.Namespace:
    """Reads the command line; a wrong one exits with code 2."""
    parser = argparse.ArgumentParser(
        prog="self_check.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--tpu", default="auto", help="auto (the default), local, none, or the name of a TPU"
    )
    parser.add_argument("--require_tpu", action="store_true", help="fail where there is no TPU")
    values = parser.parse_args(argv)
    if values.require_tpu and values.tpu == "none":
        parser.error("--require_tpu and --tpu=none exclude each other; leave one out")
    return values


def find_tpu(asked: str, device_folder: Path = Path("/dev")) -> str | None:
    """Returns what `TPUClusterResolver` takes, or None where there is no TPU.

    Args:
        asked: "auto", "local", "none" or a name. "auto" is the environment variable TPU_NAME, or
            the chips of this machine.
        device_folder: where the chips show: as accel0, ... or, from v5e on, as vfio/0, ...
    """
    if asked != "auto":
        return None if asked == "none" else asked
    if name := os.environ.get("TPU_NAME"):
        return name
    chips = [*device_folder.glob("accel[0-9]*"), *device_folder.glob("vfio/[0-9]*")]
    return "local" if chips else None


def versions() -> str:
    """Returns the versions of Python and of PACKAGES as one line; "-" is not installed."""
    found = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} -")
    return ", ".join(found)


def make_strategy(tpu: str | None) -> tf.distribute.Strategy:
    """Returns TPUStrategy on a TPU, or else the strategy of the one GPU or CPU."""
    from keras_vmoe.trainers import strategies

    return strategies.make_strategy("one_device" if tpu is None else "tpu", tpu)


def devices(strategy: tf.distribute.Strategy) -> str:
    """Returns what TensorFlow sees, and what the strategy makes of it, as one line."""
    import tensorflow as tf

    counts = {}
    for device in tf.config.list_logical_devices():
        counts[device.device_type] = counts.get(device.device_type, 0) + 1
    seen = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"{seen}; {type(strategy).__name__} with {strategy.num_replicas_in_sync} replica(s)"


def one_step(strategy: tf.distribute.Strategy) -> float:
    """Trains a tiny V-MoE for one step and returns the loss, auxiliary losses included."""
    import keras
    import numpy as np
    import tensorflow as tf

    from keras_vmoe import models

    keras.utils.set_random_seed(0)
    replicas = strategy.num_replicas_in_sync
    batch_size = IMAGES_PER_REPLICA * replicas
    images = np.random.default_rng(0).uniform(-1, 1, (batch_size, 16, 16, 3)).astype("float32")
    labels = np.arange(batch_size, dtype="int32") % NUM_CLASSES
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    dataset = dataset.batch(batch_size, drop_remainder=True)
    with strategy.scope():
        model = models.VMoE(
            image_size=16,
            patch_size=8,
            num_layers=2,
            width=16,
            mlp_dim=32,
            num_heads=2,
            num_classes=NUM_CLASSES,
            num_experts=4,
            num_selected=1,
        )
        optimizer = keras.optimizers.AdamW(1e-3)
        optimizer.build(model.trainable_variables)

    def replica_step(batch):
        images, labels = batch
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_sum(losses) / batch_size + tf.add_n(model.losses) / replicas
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    @tf.function(autograph=False)
    def step(batch):
        return strategy.reduce("SUM", strategy.run(replica_step, args=(batch,)), axis=None)

    loss = float(step(next(iter(strategy.experimental_distribute_dataset(dataset)))))
    weights = [np.asarray(v) for v in model.trainable_variables]
    if not math.isfinite(loss) or not all(np.isfinite(w).all() for w in weights):
        raise FloatingPointError(f"the loss is {loss}, or a weight is not finite")
    return loss


def main(argv: list[str]) -> int:
    """Runs the check; returns the exit code: 0, or 1 where it fails."""
    values = arguments(argv)
    began = time.monotonic()
    print(f"self-check on {platform.node()}: {versions()}", flush=True)
    tpu = find_tpu(values.tpu)
    if tpu is None:
        if values.require_tpu:
            print(
                "self-check: error: no TPU on this machine and TPU_NAME is not set; "
                "run this on a TPU VM, or leave out --require_tpu",
                file=sys.stderr,
            )
            return 1
        print("self-check: no TPU: one step without it", flush=True)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        strategy = make_strategy(tpu)
        print(f"self-check: devices: {devices(strategy)}", flush=True)
        loss = one_step(strategy)
    except Exception as error:
        where = "without a TPU" if tpu is None else f"on the TPU {tpu!r}"
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"self-check: error: one step {where} failed: {message}", file=sys.stderr)
        return 1
    print(f"self-check: loss of one step {loss:.4f}")
    print(f"self-check: passed in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
