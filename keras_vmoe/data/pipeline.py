"""From a split to batches that a model takes."""

from collections.abc import Callable

import tensorflow as tf

from keras_vmoe.data.augment import Augment
from keras_vmoe.data.folder import decode
from keras_vmoe.data.source import ArraySplit, FileSplit, Split, StreamSplit

# Encoded examples that a stream is shuffled within.
_SHUFFLE_WINDOW = 4096
# Streams of random numbers of one epoch.
_ORDER, _DRAWS = 0, 1

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
    augment: Augment | None = None,
) -> tf.data.Dataset:
    """Makes batches of `{"image": float32 [b, s, s, channels] in [-1, 1], "label": int32 [b]}`.

    In training every epoch has its own order and drops its incomplete last batch. Order and
    augmentation are functions of (seed, epoch, example) alone: a run that begins at `start_step`
    sees the very batches that an uninterrupted one sees from there on. Otherwise each example
    comes once, in order, and the last batch may be smaller.

    Images are resized to squares bilinearly, without keeping their proportions.

    Args:
        split: the examples.
        batch_size: number of examples b in a batch.
        image_size: side s of the images in pixels.
        training: shuffle, drop remainders, augment, and go on without end.
        channels: 3 repeats a grey image, 1 takes the lightness of a coloured one; None keeps what
            the split has.
        seed: of order and augmentation.
        start_step: number of batches to leave out at the beginning.
        steps: number of batches after which to end; None does not limit them.
        augment: random changes of the training images.

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
    """
    _check(split, batch_size, image_size, training, channels, start_step)
    examples = _endless(split, batch_size, seed, start_step) if training else _ordered(split)
    if not isinstance(split, ArraySplit):
        examples = examples.map(_reader(split, image_size), num_parallel_calls=tf.data.AUTOTUNE)
    batches = examples.batch(batch_size, drop_remainder=training)
    if not training:
        batches = batches.skip(start_step)
    finish = _finisher(split, image_size, channels, augment if training else None)
    batches = batches.map(finish, num_parallel_calls=tf.data.AUTOTUNE)
    if steps is not None:
        batches = batches.take(steps)
    return batches.prefetch(tf.data.AUTOTUNE)


def _check(
    split: Split,
    batch_size: int,
    image_size: int,
    training: bool,
    channels: int | None,
    start_step: int,
) -> None:
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("image_size", image_size, 1),
        ("start_step", start_step, 0),
    ):
        if value < least:
            raise ValueError(f"{name}={value!r}: expected {least} or more.")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels!r}: expected 1, 3 or None.")
    if training and batch_size > split.num_examples:
        raise ValueError(
            f"batch_size={batch_size} is larger than the {split.num_examples} training examples."
        )


def _ordered(split: Split) -> tf.data.Dataset:
    """Every example once. A stream gives encoded images, other splits give indices."""
    if isinstance(split, StreamSplit):
        return split.open()
    return tf.data.Dataset.range(split.num_examples).map(lambda index: {"index": index})


def _endless(split: Split, batch_size: int, seed: int, start_step: int) -> tf.data.Dataset:
    """Joins the shuffled epochs, from the example that `start_step` begins with."""
    per_epoch = split.steps_per_epoch(batch_size)
    first_epoch, first_step = divmod(start_step, per_epoch)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        done = tf.where(epoch == first_epoch, tf.constant(first_step * batch_size, tf.int64), 0)
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        return _shuffled(split, epoch_seed).take(per_epoch * batch_size).skip(done)

    return tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(one_epoch)


def _shuffled(split: Split, seed: tf.Tensor) -> tf.data.Dataset:
    """One epoch in random order, with the random numbers that augmentation takes."""
    order_seed, draws_seed = (tf.random.fold_in(seed, i) for i in (_ORDER, _DRAWS))
    if isinstance(split, StreamSplit):
        return _shuffled_stream(split, order_seed, draws_seed)
    order = tf.random.experimental.stateless_shuffle(tf.range(split.num_examples), order_seed)
    draws = tf.random.stateless_uniform((split.num_examples, Augment.num_draws), draws_seed)
    return tf.data.Dataset.from_tensor_slices({"index": order, "draws": draws})


def _shuffled_stream(
    split: StreamSplit, order_seed: tf.Tensor, draws_seed: tf.Tensor
) -> tf.data.Dataset:
    """Shuffles within windows.

    `Dataset.shuffle` would mix over their borders, but its order depends on TensorFlow's global
    seed too, and TensorFlow Datasets are shuffled as a whole when they are written.
    """

    def add_draws(index: tf.Tensor, example: Batch) -> Batch:
        seed = tf.random.fold_in(draws_seed, index)
        return example | {"draws": tf.random.stateless_uniform((Augment.num_draws,), seed)}

    def shuffle(window: tf.Tensor, examples: Batch) -> Batch:
        size = tf.shape(examples["label"])[0]
        seed = tf.random.fold_in(order_seed, window)
        order = tf.random.experimental.stateless_shuffle(tf.range(size), seed)
        return {name: tf.gather(value, order) for name, value in examples.items()}

    examples = split.open().enumerate().map(add_draws)
    return examples.batch(_SHUFFLE_WINDOW).enumerate().map(shuffle).unbatch()


def _reader(split: FileSplit | StreamSplit, image_size: int) -> Callable[[Batch], Batch]:
    """Returns a function that decodes one image, and resizes it so that it can be batched."""
    if isinstance(split, FileSplit):
        with tf.device("CPU:0"):
            paths, labels = tf.constant(split.paths), tf.constant(split.labels)

    def read(example: Batch) -> Batch:
        if isinstance(split, FileSplit):
            index = example.pop("index")
            image = decode(tf.io.read_file(paths[index]))
            example["label"] = labels[index]
        else:
            image = decode(example["image"], split.channels)
        example["image"] = tf.image.resize(image, (image_size, image_size))
        return example

    return read


def _finisher(
    split: Split, image_size: int, channels: int | None, augment: Augment | None
) -> Callable[[Batch], Batch]:
    """Returns a function that does the rest for a whole batch at once."""
    if isinstance(split, ArraySplit):
        with tf.device("CPU:0"):
            arrays, labels = tf.constant(split.images), tf.constant(split.labels)

    def finish(batch: Batch) -> Batch:
        if isinstance(split, ArraySplit):
            images, label = tf.gather(arrays, batch["index"]), tf.gather(labels, batch["index"])
        else:
            images, label = batch["image"], batch["label"]
        images = tf.cast(images, tf.float32)
        if images.shape[1:3] != (image_size, image_size):
            images = tf.image.resize(images, (image_size, image_size))
        if augment is not None:
            images = augment(images, batch["draws"])
        images = _with_channels(images, channels)
        return {"image": images / 127.5 - 1.0, "label": tf.cast(label, tf.int32)}

    return finish


def _with_channels(images: tf.Tensor, channels: int | None) -> tf.Tensor:
    given = images.shape[-1]
    if channels in (None, given):
        return images
    if (given, channels) == (1, 3):
        return tf.repeat(images, 3, axis=-1)
    if (given, channels) == (3, 1):
        return tf.image.rgb_to_grayscale(images)
    raise ValueError(f"channels={channels}: images of {given} channels cannot be made so.")
