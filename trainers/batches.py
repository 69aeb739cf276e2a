"""The batches of a run, for training and of the images held out; the same on every backend."""

from __future__ import annotations

import tensorflow as tf

from keras_vmoe import data
from keras_vmoe.trainers.config import TrainConfig


def training_batches(
    config: TrainConfig,
    source: data.ImageSource,
    start_step: int = 0,
    num_shards: int = 1,
    shard_index: int = 0,
) -> tf.data.Dataset:
    """Returns endless batches of `{"image", "label"}`, augmented.

    Args:
        config: the run's parameters.
        source: its data.
        start_step: the step that the run begins at or goes on from.
        num_shards: processes that share a batch.
        shard_index: which of them reads.
    """
    return data.make_dataset(
        source.train,
        batch_size=config.batch_size,
        image_size=config.image_size,
        channels=config.image_channels(source),
        training=True,
        seed=config.seed,
        start_step=start_step,
        num_shards=num_shards,
        shard_index=shard_index,
        crop=config.crop,
        augment=config.augment,
        mix=config.mix,
        repeats=config.repeats,
        num_classes=source.num_classes,
        cache=config.cache,
    )


def held_out_batches(
    config: TrainConfig,
    source: data.ImageSource,
    batch_size: int,
    num_shards: int = 1,
    shard_index: int = 0,
) -> tf.data.Dataset:
    """Returns batches of `{"image", "label", "mask"}`, each held-out image once, padded at the end.

    Args:
        config: the run's parameters.
        source: its data.
        batch_size: images of one step, over all processes.
        num_shards: processes that share a batch.
        shard_index: which of them reads.
    """
    return data.make_dataset(
        source.eval,
        batch_size=batch_size,
        num_shards=num_shards,
        shard_index=shard_index,
        image_size=config.image_size,
        channels=config.image_channels(source),
        crop=config.eval_crop,
        cache=config.cache,
        pad=True,
    )


def verify(source: data.ImageSource) -> None:
    """Has the data name a file that cannot be decoded, which TensorFlow's errors do not.

    Args:
        source: a run's data.

    Raises:
        ValueError: as `data.verify`, of images to train on or held out.
    """
    data.verify(source.train)
    data.verify(source.eval)
