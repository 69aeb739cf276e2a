"""What a set of images with labels is, whichever place it came from."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_vmoe.data.corrupt import CorruptImages

# Splits of equally sized images up to this many bytes are held decoded in memory.
MEMORY_LIMIT = 512 * 2**20

OpenPart = Callable[[tf.Tensor], tf.data.Dataset]


@dataclass(frozen=True)
class Split:
    """The examples of one split: how many there are. Subclasses say where they lie.

    Args:
        num_examples: number of labelled images.
    """

    num_examples: int

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the number of full batches in one pass; training drops the remainder."""
        return self.num_examples // batch_size


@dataclass(frozen=True, eq=False)
class ArraySplit(Split):
    """Decoded images in memory, all of one size.

    Args:
        num_examples: number of labelled images.
        images: uint8 array `[n, height, width, channels]`.
        labels: int32 array `[n]`; strings where the split is one of pairs.
    """

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray) -> "ArraySplit":
        """Returns the split of these arrays, with `labels` as int32."""
        return cls(len(images), images, np.asarray(labels, np.int32))


@dataclass(frozen=True, eq=False)
class FileSplit(Split):
    """Image files, decoded when they are needed.

    Args:
        num_examples: number of labelled images.
        paths: one file per example.
        labels: int32 array `[n]`; strings where the split is one of pairs.
        corrupt: counts the files that cannot be decoded and lets some be left out; None lets
            none.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    corrupt: CorruptImages | None = None


@dataclass(frozen=True, eq=False)
class StreamSplit(Split):
    """Encoded images that can only be read in order, each part of them from its beginning.

    Args:
        num_examples: number of labelled images.
        open: takes the number of a part, an int64 scalar; returns a `tf.data.Dataset` of
            `{"image": encoded bytes, "label": int}` in one fixed order; labels are strings where
            the split is one of pairs.
        channels: number of channels that the images are decoded to.
        corrupt: counts the images that cannot be decoded and lets some be left out; None lets
            none.
        name: what messages call the stream.
        part_sizes: number of examples of each part, a file for instance; None for a single part.

    Raises:
        ValueError: if the parts have more or fewer examples together.
    """

    open: OpenPart
    channels: int
    corrupt: CorruptImages | None = None
    name: str = "the stream"
    part_sizes: tuple[int, ...] | None = None

    def __post_init__(self):
        if sum(self.sizes) != self.num_examples:
            raise ValueError(
                f"part_sizes: {len(self.sizes)} parts of {sum(self.sizes)} examples together, but "
                f"num_examples={self.num_examples}."
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of examples of each part."""
        return (self.num_examples,) if self.part_sizes is None else self.part_sizes

    def shard(self, num_shards: int, shard_index: int) -> "StreamSplit":
        """Returns what one host reads; what all hosts read makes up the whole.

        Each host reads parts of its own. Where there are fewer parts than hosts, all read
        everything and each leaves out the examples of the others.

        Args:
            num_shards: number of hosts.
            shard_index: which of them, from 0.
        """
        if num_shards == 1:
            return self
        if len(self.sizes) >= num_shards:
            mine = range(shard_index, len(self.sizes), num_shards)
            sizes = tuple(self.sizes[part] for part in mine)
            numbers = np.asarray(mine)

            def open_part(part: tf.Tensor) -> tf.data.Dataset:
                return self.open(tf.constant(numbers)[part])
        else:
            sizes = tuple(len(range(shard_index, size, num_shards)) for size in self.sizes)

            def open_part(part: tf.Tensor) -> tf.data.Dataset:
                return self.open(part).shard(num_shards, shard_index)

        name = f"{self.name} (part {shard_index + 1} of {num_shards})"
        return dataclasses.replace(
            self, num_examples=sum(sizes), open=open_part, name=name, part_sizes=sizes
        )


class WithSplits:
    """The splits of a source, which has them in its fields."""

    name: str
    splits: Mapping[str, Split]
    train_split: str
    eval_split: str
    corrupt: CorruptImages | None

    def __post_init__(self):
        for argument in ("train_split", "eval_split"):
            value = getattr(self, argument)
            if value not in self.splits:
                raise ValueError(
                    f"{argument}={value!r} is not a split of {self.name!r}: "
                    f"use one of {', '.join(sorted(self.splits))}."
                )

    @property
    def skipped(self) -> tuple[str, ...]:
        """The images left out because they cannot be decoded, each with the reason.

        Those of an image folder are known when it is loaded; those of a stream are found while
        it is read, so that this grows during training.
        """
        return self.corrupt.found if self.corrupt else ()

    @property
    def train(self) -> Split:
        """The split to train on."""
        return self.splits[self.train_split]

    @property
    def eval(self) -> Split:
        """The split held out from training."""
        return self.splits[self.eval_split]


@dataclass(frozen=True, eq=False)
class ImageSource(WithSplits):
    """A labelled image dataset.

    Args:
        name: the name that it was loaded by.
        class_names: one name per label.
        image_shape: `(height, width, channels)`; height and width are None where they vary.
        splits: the splits by name.
        train_split: name of the split to train on.
        eval_split: name of the split held out from training.
        corrupt: counts the images that cannot be decoded; None where all were.

    Raises:
        ValueError: if `train_split` or `eval_split` is not in `splits`.
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    splits: Mapping[str, Split]
    train_split: str = "train"
    eval_split: str = "test"
    corrupt: CorruptImages | None = None

    @property
    def num_classes(self) -> int:
        """The number of labels."""
        return len(self.class_names)


def stratified_split(
    labels: np.ndarray, held_out: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples so that each class keeps its share in both parts.

    The same labels always give the same split: the generator is NumPy's frozen `RandomState`.
    The held-out part has `ceil(held_out * n)` examples, shared out by largest remainder.

    Args:
        labels: int array `[n]`.
        held_out: share of the second part.
        seed: which of the possible splits.

    Returns:
        Sorted indices of the two parts.

    Example:
        >>> train, test = stratified_split(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]))
        >>> len(train), len(test)
        (8, 2)
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * held_out
    taken = np.floor(exact).astype(int)
    missing = math.ceil(len(labels) * held_out) - taken.sum()
    taken[np.argsort(taken - exact, kind="stable")[:missing]] += 1
    # RandomState, because its stream of numbers never changes.
    random = np.random.RandomState(seed)
    held = [
        random.permutation(np.flatnonzero(labels == label))[:number]
        for label, number in zip(classes, taken, strict=True)
    ]
    test = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), test), test
