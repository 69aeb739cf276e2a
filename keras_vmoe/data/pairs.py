"""Images and their captions.

A split of pairs is one of images whose labels are strings: the captions of an image, one a line. So
order, resuming, shards, crops and damaged images are those of labelled images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_vmoe.data import order
from keras_vmoe.data.augmentation import Augmentation
from keras_vmoe.data.corrupt import CorruptImages
from keras_vmoe.data.crops import Crop
from keras_vmoe.data.draws import table_rows
from keras_vmoe.data.pipeline import Batch, make_dataset
from keras_vmoe.data.source import ArraySplit, Split, StreamSplit, WithSplits
from keras_vmoe.text import Tokenizer

# Between the captions of an image.
SEPARATOR = "\n"
# Keeps the draws of captions apart from those of epochs and mixes, which begin alike.
_CAPTIONS = 3
_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class PairSource(WithSplits):
    """A dataset of images with one or several captions each.

    Args:
        name: the name that it was loaded by.
        image_shape: `(height, width, channels)`; height and width are None where they vary.
        splits: the splits by name; `read_captions` reads the captions of one.
        train_split: name of the split to train on.
        eval_split: name of the split held out from training.
        corrupt: counts the images that cannot be decoded or have no caption; None where all are
            well.

    Raises:
        ValueError: if `train_split` or `eval_split` is not in `splits`.

    Example:
        >>> from keras_vmoe import data
        >>> source = data.load_pairs("digit_grids")
        >>> source.image_shape, source.train.num_examples
        ((32, 32, 1), 20000)
    """

    name: str
    image_shape: tuple[int | None, int | None, int]
    splits: Mapping[str, Split]
    train_split: str = "train"
    eval_split: str = "test"
    corrupt: CorruptImages | None = None


def join_captions(captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the labels of pairs: white space within captions becomes a space, empty ones go.

    Args:
        captions: those of each image.

    Returns:
        An object array `[n]` of strings.

    Raises:
        ValueError: if an image has no caption; names its number.
    """
    labels = np.empty(len(captions), object)
    for place, several in enumerate(captions):
        cleaned = [" ".join(caption.split()) for caption in several]
        labels[place] = SEPARATOR.join(caption for caption in cleaned if caption)
        if not labels[place]:
            raise ValueError(f"captions[{place}]={tuple(several)!r}: image {place} has no caption.")
    return labels


def pair_arrays(images: np.ndarray, captions: Sequence[Sequence[str]]) -> ArraySplit:
    """Returns a split of images in memory and their captions.

    Args:
        images: uint8 `[n, height, width, channels]`.
        captions: one or several for each image.

    Raises:
        ValueError: if their numbers differ, or an image has no caption.

    Example:
        >>> split = pair_arrays(np.zeros((2, 8, 8, 3), np.uint8), [("a cat", "pet"), ("a dog",)])
        >>> list(read_captions(split))
        [('a cat', 'pet'), ('a dog',)]
    """
    if len(images) != len(captions):
        raise ValueError(f"captions: {len(captions)} for {len(images)} images.")
    return ArraySplit(len(images), images, join_captions(captions))


def split_captions(label: str | bytes) -> tuple[str, ...]:
    """Returns the captions of one image from its label, as `make_dataset` gives it.

    Args:
        label: of a split of pairs.

    Example:
        >>> split_captions(b"a cat\\na pet")
        ('a cat', 'a pet')
    """
    text = label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
    return tuple(text.split(SEPARATOR)) if text else ()


def read_captions(split: Split) -> Iterator[tuple[str, ...]]:
    """Yields the captions of each image, in the order of evaluation.

    Those of arrays and files are known; a stream is read once, and nothing of it is decoded. An
    image of a stream that may be left out because it lacks a caption has none.

    Args:
        split: a split of pairs.

    Raises:
        ValueError: if it is one of labelled images.

    Example:
        >>> from keras_vmoe import data
        >>> next(read_captions(data.load_pairs("digit_grids").eval))
        ('top left five top right zero bottom right three',)
    """
    _require_captions(split)
    if not isinstance(split, StreamSplit):
        yield from map(split_captions, split.labels)
        return
    examples, _ = order.evaluation(split, order.Schedule(batch_size=1))
    labels = examples.map(lambda example: example["label"]).batch(_CHUNK)
    for batch in labels.as_numpy_iterator():
        for label in batch:
            yield split_captions(label)


def make_pairs(
    split: Split,
    tokenizer: Tokenizer,
    batch_size: int,
    image_size: int,
    training: bool = False,
    channels: int | None = None,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    augment: Augmentation | Sequence[Augmentation] | None = None,
    crop: Crop | None = None,
    pad: bool = False,
    num_shards: int = 1,
    shard_index: int = 0,
    cache: bool = False,
) -> tf.data.Dataset:
    """Makes batches of `{"image": float32 [b, s, s, channels], "tokens": int32 [b, length]}`.

    Images, in [-1, 1], and their order are those of `make_dataset`, whose arguments these are. In
    training one caption of each image is drawn, by (seed, step, place in the batch) alone;
    otherwise the first is taken. Captions that are too long or unknown become what `Tokenizer`
    says.

    Nothing is augmented by default. Mirroring an image makes "left" in its caption wrong, and a
    crop may cut away what the caption names.

    Args:
        split: the pairs.
        tokenizer: makes tokens of captions.
        batch_size: number of pairs b in a batch, of all hosts together.
        image_size: side s of the images in pixels.
        training: shuffle, drop remainders, draw captions, augment, and go on without end.
        channels: 3 repeats a grey image, 1 takes the lightness of a coloured one; None keeps what
            the split has.
        seed: of order and random changes.
        start_step: number of batches to leave out at the beginning.
        steps: number of batches after which to end; None does not limit them.
        augment: random changes of the training images.
        crop: how an image becomes a square; None resizes it without keeping its proportions.
        pad: fill the last batch up with images of zeros and rows of EOS, and add
            `"mask": bool [b]`, true for pairs, to every batch.
        num_shards: number of hosts.
        shard_index: which host this is, from 0.
        cache: hold the encoded bytes of files and streams in memory.

    Returns:
        The dataset.

    Raises:
        ValueError: if the split has no captions, an argument is out of range, or a training batch
            is larger than the split.

    Example:
        >>> from keras_vmoe import data, text
        >>> source = data.load_pairs("digit_grids")
        >>> captions = (one for several in data.read_captions(source.train) for one in several)
        >>> words = text.train_tokenizer(captions, vocabulary_size=128)
        >>> batch = next(iter(make_pairs(source.train, words, 32, 32, training=True)))
        >>> batch["image"].shape, batch["tokens"].shape
        (TensorShape([32, 32, 32, 1]), TensorShape([32, 16]))
    """
    _require_captions(split)
    batches = make_dataset(
        split,
        batch_size,
        image_size,
        training=training,
        channels=channels,
        seed=seed,
        start_step=start_step,
        steps=steps,
        augment=augment,
        crop=crop,
        pad=pad,
        num_shards=num_shards,
        shard_index=shard_index,
        cache=cache,
    )
    count = batch_size // num_shards

    def tokenize(step: tf.Tensor, batch: Batch) -> Batch:
        captions = tf.strings.split(batch.pop("label"), SEPARATOR)
        chosen = tf.zeros_like(captions.row_lengths())
        if training:
            seeds = tf.random.fold_in(tf.stack([tf.constant(seed, tf.int64), step]), _CAPTIONS)
            draws = table_rows(seeds, tf.constant(shard_index * count), count, 1)[:, 0]
            numbers = tf.cast(captions.row_lengths(), tf.float32)
            chosen = tf.cast(tf.floor(draws * numbers), tf.int64)
        return batch | {"tokens": tokenizer(tf.gather(captions, chosen, batch_dims=1))}

    # None of it needs AutoGraph.
    tokenize = tf.autograph.experimental.do_not_convert(tokenize)
    batches = batches.enumerate(start_step).map(tokenize, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def _require_captions(split: Split) -> None:
    if isinstance(split, StreamSplit):
        labels = split.open(tf.constant(0, tf.int64)).element_spec["label"].dtype == tf.string
    else:
        labels = np.asarray(split.labels).dtype == object
    if not labels:
        raise ValueError(
            "split: its images have class ids, not captions; load_pairs('labelled:NAME') makes "
            "captions of class names."
        )
