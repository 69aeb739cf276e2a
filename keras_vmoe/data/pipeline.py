"""From a split to batches that a model takes."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from keras_vmoe.data import order, reading
from keras_vmoe.data.augmentation import Augmentation, as_sequence, augment_all
from keras_vmoe.data.crops import CentralCrop, Crop
from keras_vmoe.data.mixes import Mix, as_one_mix
from keras_vmoe.data.order import Schedule
from keras_vmoe.data.source import ArraySplit, Split, StreamSplit

# Keeps the random numbers of mixes apart from those of epochs, which begin with (seed, epoch).
_MIXES = 2

Batch = dict[str, tf.Tensor]


def make_dataset(
    split: Split,
    batch_size: int,
    image_size: int,
    training: bool = False,
    channels: int | None = None,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    augment: Augmentation | Sequence[Augmentation] | None = None,
    crop: Crop | None = None,
    mix: Mix | Sequence[Mix] | None = None,
    repeats: int = 1,
    num_classes: int | None = None,
    pad: bool = False,
    num_shards: int = 1,
    shard_index: int = 0,
    cache: bool = False,
) -> tf.data.Dataset:
    """Makes batches of `{"image": float32 [b, s, s, channels] in [-1, 1], "label": int32 [b]}`.

    In training every epoch has its own order and drops its incomplete last batch. Order and
    all random changes are functions of (seed, epoch, place in the epoch) alone: a run that begins
    at `start_step` sees the very batches that an uninterrupted one sees from there on. Otherwise
    each example comes once, in order, and the last batch may be smaller.

    Images are bytes from decoding to the end, where they are scaled to [-1, 1] and mixed. They
    are floats earlier where something resamples without rounding: `crop=None` where the size
    changes, and `Augment`.

    An image that cannot be decoded is an error, but where the source was loaded with
    `max_corrupt`. Then it is left out of evaluation, and in training the next whole image of the
    batch takes its place, so that batches, epochs and resuming stay what they are.

    Args:
        split: the examples.
        batch_size: number of examples b in a batch, of all hosts together.
        image_size: side s of the images in pixels.
        training: shuffle, drop remainders, augment, mix, and go on without end.
        channels: 3 repeats a grey image, 1 takes the lightness of a coloured one; None keeps what
            the split has.
        seed: of order and random changes.
        start_step: number of batches to leave out at the beginning.
        steps: number of batches after which to end; None does not limit them.
        augment: random changes of the training images, one or several in their order.
        crop: how an image becomes a square: `InceptionCrop` in training, `CentralCrop`; None
            resizes it bilinearly without keeping its proportions.
        mix: mixes the images of a training batch, one or several, one of which is drawn for each
            batch. Labels are then float32 `[b, num_classes]`. Hosts mix their own part.
        repeats: how many times, changed otherwise, an example comes in a training batch, one
            time fewer for the last of a batch that `repeats` does not divide. An epoch keeps its
            number of steps: it takes 1 / repeats of the examples.
        num_classes: for `mix`.
        pad: fill the last batch up with images of zeros, of label 0, and add `"mask": bool [b]`,
            true for examples, to every batch. The number b is then static.
        num_shards: number of hosts. The batches of all hosts, put together, are those of a single
            one, before they are mixed; those of streams hold other examples, for each host reads
            files of its own.
        shard_index: which host this is, from 0.
        cache: hold the encoded bytes of files and streams in memory. All are read now.

    Returns:
        The dataset.

    Raises:
        ValueError: if an argument is out of range, or a training batch is larger than the split.

    Example:
        >>> from keras_vmoe import data
        >>> split = data.load("digits").train
        >>> batches = data.make_dataset(split, batch_size=32, image_size=16, training=True)
        >>> next(iter(batches))["image"].shape
        TensorShape([32, 16, 16, 1])
        >>> padded = data.make_dataset(data.load("digits").eval, 200, image_size=8, pad=True)
        >>> [int(tf.reduce_sum(tf.cast(batch["mask"], tf.int32))) for batch in padded]
        [200, 160]

    Reference:
        Repeats: Hoffer et al., "Augment your batch", 2020, section 3
        (https://arxiv.org/abs/1901.09335), and DeiT.
    """
    augmentations = as_sequence(augment) if training else ()
    _check(split, image_size, training, channels, crop)
    drawing = (crop, *augmentations) if crop else augmentations
    schedule = Schedule(
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        repeats=repeats,
        num_shards=num_shards,
        shard_index=shard_index,
        num_draws=sum(one.num_draws for one in drawing),
    )
    check_batches(split, schedule, training, pad)
    mix = as_one_mix(mix) if training else None
    if mix is not None and num_classes is None:
        raise ValueError("num_classes=None: mixing images mixes labels, which needs their number.")
    pipeline = _Pipeline(
        split=split,
        image_size=image_size,
        training=training,
        channels=channels,
        augmentations=augmentations,
        crop=crop,
        mix=mix,
        num_classes=num_classes,
        pad=pad,
        schedule=schedule,
    )
    batches = pipeline.batches(cache)
    if steps is not None:
        batches = batches.take(steps)
    return batches.prefetch(tf.data.AUTOTUNE)


def _check(
    split: Split, image_size: int, training: bool, channels: int | None, crop: Crop | None
) -> None:
    if image_size < 1:
        raise ValueError(f"image_size={image_size!r}: expected 1 or more.")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r}: expected 1, 3 or None.")
    given = split.images.shape[-1] if isinstance(split, ArraySplit) else reading.channels(split)
    if channels not in (None, given) and given not in (1, 3):
        raise ValueError(f"channels={channels}: images of {given} channels cannot be made so.")
    if crop is None:
        return
    if inspect.isclass(crop) or not hasattr(crop, "num_draws") or not callable(crop):
        raise ValueError(
            f"crop={crop!r} is no crop: make one, such as InceptionCrop(); in gin with brackets, "
            "train.crop = @InceptionCrop()."
        )
    if crop.num_draws and not training:
        raise ValueError(f"crop={crop!r} is random: evaluation takes CentralCrop(...) or None.")
    if isinstance(crop, CentralCrop):
        crop.check(image_size)


def check_batches(split: Split, schedule: Schedule, training: bool, pad: bool) -> None:
    """Raises a `ValueError` if a split cannot give such batches."""
    if training and schedule.batch_size > split.num_examples:
        raise ValueError(
            f"batch_size={schedule.batch_size} is larger than the {split.num_examples} training "
            "examples."
        )
    if not training and schedule.num_shards > 1 and not pad:
        raise ValueError(
            f"num_shards={schedule.num_shards}: evaluation on several hosts needs pad=True, so "
            "that all have as many batches."
        )


@dataclass(frozen=True, eq=False)
class _Pipeline:
    """One call of `make_dataset`, checked."""

    split: Split
    image_size: int
    training: bool
    channels: int | None
    augmentations: tuple[Augmentation, ...]
    crop: Crop | None
    mix: Mix | None
    num_classes: int | None
    pad: bool
    schedule: Schedule

    def batches(self, cache: bool) -> tf.data.Dataset:
        """Returns finished batches, without end in training."""
        # Where nothing has to be done image by image, whole batches are taken out of arrays.
        one_by_one = (
            not isinstance(self.split, ArraySplit)
            or self.crop is not None
            or any(one.per_image for one in self.augmentations)
        )
        batches = self._read(cache) if one_by_one else self._take_from_arrays()
        if not self.training:
            batches = batches.skip(self.schedule.start_step)
        batches = batches.enumerate(self.schedule.start_step)
        return batches.map(plain(self._finish), num_parallel_calls=tf.data.AUTOTUNE)

    def _read(self, cache: bool) -> tf.data.Dataset:
        """Returns batches of images that were read, cropped and augmented one by one."""
        split = self.split
        examples, missing = open_examples(split, self.schedule, self.training, cache)
        reader = reading.Reader(split, self.image_size, self.crop, self.augmentations, cache)
        examples = examples.map(plain(reader), num_parallel_calls=tf.data.AUTOTUNE)
        return self._batch(examples, missing)

    def _take_from_arrays(self) -> tf.data.Dataset:
        """Returns batches of images as they are in memory, augmented."""
        with tf.device("CPU:0"):
            arrays, labels = tf.constant(self.split.images), tf.constant(self.split.labels)
        if self.training:
            batches = order.training_batches(self.split, self.schedule)
        else:
            batches = self._batch(*order.evaluation(self.split, self.schedule))

        def take(batch: Batch) -> Batch:
            index = batch.pop("index")
            images = tf.gather(arrays, index)
            if images.shape[1:3] != (self.image_size, self.image_size):
                images = tf.image.resize(images, (self.image_size, self.image_size))
            if self.augmentations:
                images = augment_all(self.augmentations, images, batch.pop("draws"))
            return batch | {"image": images, "label": tf.gather(labels, index)}

        return batches.map(plain(take), num_parallel_calls=tf.data.AUTOTUNE)

    def _batch(self, examples: tf.data.Dataset, missing: int) -> tf.data.Dataset:
        size, pad = self.schedule.host_batch_size, self.pad
        return in_batches(examples, missing, size, pad, drop_remainder=self.training or pad)

    def _finish(self, step: tf.Tensor, batch: Batch) -> Batch:
        """Scales, mixes and masks one batch."""
        if "whole" in batch:
            batch = reading.keep_whole(batch) if self.training else reading.leave_out(batch)
        images = with_channels(tf.cast(batch["image"], tf.float32), self.channels)
        images, labels = images / 127.5 - 1.0, batch["label"]
        if self.mix is not None:
            seed = tf.stack([tf.constant(self.schedule.seed, tf.int64), step])
            labels = tf.one_hot(labels, self.num_classes)
            images, labels = self.mix(images, labels, tf.random.fold_in(seed, _MIXES))
        finished = {"image": images, "label": labels}
        if self.pad:
            mask = batch.get("mask", tf.ones(labels.shape[:1], tf.bool))
            finished["mask"] = mask
            kept = mask if len(labels.shape) == 1 else mask[:, None]
            finished["label"] = tf.where(kept, labels, tf.zeros_like(labels))
            finished["image"] = tf.where(mask[:, None, None, None], images, 0.0)
        return finished


def open_examples(
    split: Split, schedule: Schedule, training: bool, cache: bool
) -> tuple[tf.data.Dataset, int]:
    """Gives the examples of a split, one by one, before anything is decoded.

    Args:
        split: any split.
        schedule: the order.
        training: in the order of training, without end.
        cache: hold the encoded bytes of a stream in memory.

    Returns:
        The examples, and how many are missing to as many full batches as every host has.
    """
    held = None
    if cache and isinstance(split, StreamSplit):
        held = reading.hold_in_memory(split.shard(schedule.num_shards, schedule.shard_index))
    if not training:
        return order.evaluation(split, schedule, held)
    if isinstance(split, StreamSplit):
        return order.training_stream(split, schedule, held), 0
    return order.training_batches(split, schedule).unbatch(), 0


def in_batches(
    examples: tf.data.Dataset, missing: int, size: int, pad: bool, drop_remainder: bool
) -> tf.data.Dataset:
    """Puts examples together.

    Args:
        examples: of known shapes.
        missing: to full batches.
        size: of a batch.
        pad: fill up with zeros, and add `"mask"`, true for examples.
        drop_remainder: leave out a last batch that is smaller.
    """
    if pad:
        examples = examples.map(lambda example: example | {"mask": True})
        spec = examples.element_spec
        empty = tf.nest.map_structure(lambda of: tf.zeros(of.shape, of.dtype), spec)
        examples = examples.concatenate(tf.data.Dataset.from_tensors(empty).repeat(missing))
    return examples.batch(size, drop_remainder=drop_remainder)


def plain(function: Callable) -> Callable:
    """Keeps AutoGraph away from a function."""
    # None of these functions needs AutoGraph, which cannot read them all and says so.
    return tf.autograph.experimental.do_not_convert(function)


def with_channels(images: tf.Tensor, channels: int | None) -> tf.Tensor:
    """Returns images of so many channels; None keeps what they have."""
    given = images.shape[-1]
    if channels in (None, given):
        return images
    return tf.repeat(images, 3, axis=-1) if given == 1 else tf.image.rgb_to_grayscale(images)
