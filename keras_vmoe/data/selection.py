"""Some examples of a split, chosen by their labels before any image is decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_vmoe.data import order
from keras_vmoe.data.source import ArraySplit, FileSplit, Split, StreamSplit

_CHUNK = 1024


def read_labels(
    split: Split, on_examples: Callable[[int], None] = lambda count: None
) -> np.ndarray:
    """Returns the labels of all examples, in the order of evaluation.

    Those of arrays and files are known; a stream is read once, and nothing of it is decoded.

    Args:
        split: the examples.
        on_examples: called now and then while a stream is read, with the number read so far.

    Returns:
        int32 `[n]`.

    Example:
        >>> from keras_vmoe import data
        >>> data.read_labels(data.load("digits").eval).shape
        (360,)
    """
    if not isinstance(split, StreamSplit):
        return np.asarray(split.labels, np.int32)
    labels, count = [], 0
    examples = _in_order(split).map(lambda example: tf.cast(example["label"], tf.int32))
    for batch in examples.batch(_CHUNK).as_numpy_iterator():
        labels.append(batch)
        count += len(batch)
        on_examples(count)
    return np.concatenate(labels)


def select(split: Split, places: np.ndarray) -> Split:
    """Returns the split of some examples alone.

    Args:
        split: the examples.
        places: `[m]` ints, their places in the order of evaluation; sorted, each once.

    Returns:
        A split of the same kind. Of a stream everything up to the last place is read, and what
        was not chosen is not decoded.

    Raises:
        ValueError: if `places` are not sorted, repeat or lie outside of the split.

    Example:
        >>> from keras_vmoe import data
        >>> split = data.load("digits").eval
        >>> data.select(split, np.flatnonzero(data.read_labels(split) == 3)).num_examples
        37
    """
    places = np.asarray(places)
    inside = not len(places) or (places[0] >= 0 and places[-1] < split.num_examples)
    if not inside or not np.all(np.diff(places) > 0):
        raise ValueError(
            f"places: expected sorted, different numbers below {split.num_examples}, the examples "
            "of the split."
        )
    count = len(places)
    if isinstance(split, ArraySplit):
        return dataclasses.replace(
            split, num_examples=count, images=split.images[places], labels=split.labels[places]
        )
    if isinstance(split, FileSplit):
        paths = tuple(split.paths[place] for place in places)
        return dataclasses.replace(
            split, num_examples=count, paths=paths, labels=split.labels[places]
        )
    chosen = np.zeros(split.num_examples, bool)
    chosen[places] = True

    def open_chosen(part: tf.Tensor) -> tf.data.Dataset:
        wanted = tf.constant(chosen)
        examples = _in_order(split).enumerate().filter(lambda place, example: wanted[place])
        return examples.map(lambda place, example: example).take(count)

    return dataclasses.replace(split, num_examples=count, open=open_chosen, part_sizes=None)


def _in_order(split: StreamSplit) -> tf.data.Dataset:
    examples, _ = order.evaluation(split, order.Schedule(batch_size=1))
    return examples
