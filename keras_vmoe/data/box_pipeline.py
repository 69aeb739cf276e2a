"""From a split of boxes to batches that a detector takes."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass

import tensorflow as tf

from keras_vmoe.data import reading
from keras_vmoe.data.boxes import require_boxes, unpack
from keras_vmoe.data.order import Example, Schedule
from keras_vmoe.data.pipeline import (
    Batch,
    check_batches,
    in_batches,
    open_examples,
    plain,
    with_channels,
)
from keras_vmoe.data.scale_jitter import ScaleJitter, fit
from keras_vmoe.data.source import Split

# What stands in the places of an image that hold no box.
NO_CLASS = -1


def make_boxes(
    split: Split,
    batch_size: int,
    image_size: int,
    training: bool = False,
    channels: int | None = None,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    jitter: ScaleJitter | None = None,
    max_boxes: int = 100,
    pad: bool = False,
    num_shards: int = 1,
    shard_index: int = 0,
    cache: bool = False,
) -> tf.data.Dataset:
    """Makes batches of images in [-1, 1] with boxes, in the order of `make_dataset`.

    Each has `"image"`, float32 `[b, s, s, channels]`; `"boxes"`, float32 `[b, max_boxes, 4]`,
    x_min, y_min, x_max, y_max in pixels; `"classes"`, int32 `[b, max_boxes]`, -1 in places without
    a box. An image may have no box at all. Proportions are kept: what an image does not fill, below
    and to the right, is grey.

    In training, crowds (regions whose objects nobody told apart) are left out, and of more than
    `max_boxes` boxes the first are taken. Otherwise there are also `"crowd"`, bool
    `[b, max_boxes]`; `"scale"`, float32 `[b, 2]`: pixels of the batch's image for one of the
    original, down and across; and `"original"`, int32 `[b, 2]`, height and width of that.

    Args:
        split: the images and boxes.
        batch_size: number of images b in a batch, of all hosts together.
        image_size: side s of the images in pixels.
        training: shuffle, drop remainders, jitter, and go on without end.
        channels: 3 repeats a grey image, 1 takes the lightness of a coloured one; None keeps what
            the split has.
        seed: of order and random changes.
        start_step: number of batches to leave out at the beginning.
        steps: number of batches after which to end; None does not limit them.
        jitter: the random scale of training images; None fits them in.
        max_boxes: places for boxes of each image.
        pad: fill the last batch up with images of zeros without a box, and add `"mask": bool [b]`,
            true for images, to every batch.
        num_shards: number of hosts.
        shard_index: which host this is, from 0.
        cache: hold the encoded bytes of streams in memory.

    Returns:
        The dataset.

    Raises:
        ValueError: if the split has no boxes, an argument is out of range, or a training batch is
            larger than the split.
        tf.errors.InvalidArgumentError: from the dataset, if a held-out image has more than
            `max_boxes` boxes.

    Example:
        >>> import numpy as np
        >>> from keras_vmoe import data
        >>> images, boxes = np.zeros((4, 20, 40, 1), np.uint8), [[[0, 0, 0.5, 1]], [], [], []]
        >>> split = data.box_arrays(images, boxes, [[7], [], [], []], num_classes=10)
        >>> batch = next(iter(make_boxes(split, 4, image_size=64, max_boxes=2)))
        >>> batch["image"].shape, batch["boxes"][0].numpy().tolist()
        (TensorShape([4, 64, 64, 1]), [[0.0, 0.0, 64.0, 16.0], [0.0, 0.0, 0.0, 0.0]])
        >>> batch["classes"].numpy().tolist()
        [[7, -1], [-1, -1], [-1, -1], [-1, -1]]
    """
    require_boxes(split)
    _check(image_size, channels, jitter, max_boxes)
    jitter = jitter if training else None
    schedule = Schedule(
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        num_shards=num_shards,
        shard_index=shard_index,
        num_draws=jitter.num_draws if jitter else 0,
    )
    check_batches(split, schedule, training, pad)
    examples, missing = open_examples(split, schedule, training, cache)
    reader = _BoxReader(
        reading.Reader(split, image_size, crop=None, cache=cache),
        image_size=image_size,
        jitter=jitter,
        max_boxes=max_boxes,
        training=training,
    )
    examples = examples.map(plain(reader), num_parallel_calls=tf.data.AUTOTUNE)
    batches = in_batches(examples, missing, schedule.host_batch_size, pad, training or pad)
    if not training:
        batches = batches.skip(start_step)
    finish = functools.partial(_finish, training=training, channels=channels)
    batches = batches.map(plain(finish), num_parallel_calls=tf.data.AUTOTUNE)
    if steps is not None:
        batches = batches.take(steps)
    return batches.prefetch(tf.data.AUTOTUNE)


def _check(
    image_size: int, channels: int | None, jitter: ScaleJitter | None, max_boxes: int
) -> None:
    for name, value in (("image_size", image_size), ("max_boxes", max_boxes)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a whole number of 1 or more.")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r}: expected 1, 3 or None.")
    if jitter is not None and (inspect.isclass(jitter) or not isinstance(jitter, ScaleJitter)):
        raise ValueError(
            f"jitter={jitter!r}: images with boxes take ScaleJitter(...), which moves the boxes "
            "along; in gin with brackets, train.crop = @ScaleJitter()."
        )


@dataclass(frozen=True, eq=False)
class _BoxReader:
    """Makes one image with boxes of one example."""

    reader: reading.Reader
    image_size: int
    jitter: ScaleJitter | None
    max_boxes: int
    training: bool

    def __call__(self, example: Example) -> Example:
        """Reads one example of `order`."""
        found = self.reader.whole(example)
        image, rows = found.pop("image"), unpack(found.pop("label"))
        if self.training:
            rows = tf.boolean_mask(rows, rows[:, 5] == 0)
        original = tf.shape(image)[:2]
        if self.jitter is not None:
            draws = example["draws"]
            image, rows = self.jitter(image, rows, self.image_size, draws)
        else:
            image, rows, scale = fit(image, rows, self.image_size)
        found |= {"image": image, **self._padded(rows)}
        return found if self.training else found | {"scale": scale, "original": original}

    def _padded(self, rows: tf.Tensor) -> Example:
        if self.training:
            rows = rows[: self.max_boxes]
        else:
            message = f"a held-out image has more than max_boxes={self.max_boxes} boxes: raise it"
            few = tf.debugging.assert_less_equal(tf.shape(rows)[0], self.max_boxes, message)
            with tf.control_dependencies([few]):
                rows = tf.identity(rows)
        missing = self.max_boxes - tf.shape(rows)[0]
        boxes = tf.pad(tf.gather(rows, [1, 0, 3, 2], axis=1), [[0, missing], [0, 0]])
        classes = tf.cast(rows[:, 4], tf.int32)
        classes = tf.pad(classes, [[0, missing]], constant_values=NO_CLASS)
        found = {
            "boxes": tf.ensure_shape(boxes, (self.max_boxes, 4)),
            "classes": tf.ensure_shape(classes, (self.max_boxes,)),
        }
        if not self.training:
            crowd = tf.pad(rows[:, 5] > 0, [[0, missing]])
            found["crowd"] = tf.ensure_shape(crowd, (self.max_boxes,))
        return found


def _finish(batch: Batch, training: bool, channels: int | None) -> Batch:
    """Leaves damaged images out, scales images to [-1, 1], empties what is padding."""
    if "whole" in batch:
        batch = reading.keep_whole(batch) if training else reading.leave_out(batch)
    images = with_channels(tf.cast(batch["image"], tf.float32), channels) / 127.5 - 1.0
    batch = batch | {"image": images}
    if "mask" in batch:
        mask = batch["mask"]
        batch["image"] = tf.where(mask[:, None, None, None], images, 0.0)
        batch["classes"] = tf.where(mask[:, None], batch["classes"], NO_CLASS)
    return batch
