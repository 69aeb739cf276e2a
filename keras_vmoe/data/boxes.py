"""Images and the boxes of the objects in them.

A split of boxes is one of images whose labels are strings: the boxes of an image, packed. So order,
resuming, shards and damaged images are those of labelled images, however many objects there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_vmoe.data import order
from keras_vmoe.data.corrupt import CorruptImages
from keras_vmoe.data.source import ArraySplit, Split, StreamSplit, WithSplits

# The columns of a row of boxes: the box as shares of the image, its class, and whether it is a
# crowd: a region of objects that nobody told apart.
COLUMNS = ("y_min", "x_min", "y_max", "x_max", "class", "crowd")


@dataclass(frozen=True, eq=False)
class BoxSource(WithSplits):
    """A dataset of images with boxes.

    Args:
        name: the name that it was loaded by.
        class_names: one name per class.
        image_shape: `(height, width, channels)`; height and width are None where they vary.
        splits: the splits by name; `read_boxes` reads the boxes of one.
        train_split: name of the split to train on.
        eval_split: name of the split held out from training.
        corrupt: counts the images that cannot be decoded; None where all are well.
        max_boxes: places for boxes that each image of a batch has.

    Raises:
        ValueError: if `train_split` or `eval_split` is not in `splits`, or `max_boxes` is not a
            whole number above 0.

    Example:
        >>> images = np.zeros((3, 8, 8, 1), np.uint8)
        >>> split = box_arrays(images, [[[0, 0, 0.5, 1]], [], []], [[1], [], []], num_classes=2)
        >>> splits = {"train": split, "validation": split}
        >>> source = BoxSource("shapes", ("disc", "square"), (8, 8, 1), splits)
        >>> source.num_classes, source.train.num_examples
        (2, 3)
    """

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int | None, int | None, int]
    splits: Mapping[str, Split]
    train_split: str = "train"
    eval_split: str = "validation"
    corrupt: CorruptImages | None = None
    max_boxes: int = 100

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.max_boxes, int) or self.max_boxes < 1:
            raise ValueError(f"max_boxes={self.max_boxes!r}: expected a whole number of 1 or more.")

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def pack(rows: tf.Tensor) -> tf.Tensor:
    """Returns the label of an image with boxes.

    Args:
        rows: float32 `[boxes, 6]`, of the columns `COLUMNS`.

    Returns:
        A string, of letters and digits alone: it survives where labels become text.

    Example:
        >>> rows = tf.constant([[0.1, 0.2, 0.5, 0.6, 3.0, 0.0]])
        >>> bool(tf.reduce_all(unpack(pack(rows)) == rows))
        True
    """
    return tf.io.encode_base64(tf.io.serialize_tensor(tf.cast(rows, tf.float32)))


def unpack(label: tf.Tensor) -> tf.Tensor:
    """Returns the rows of a label, float32 `[boxes, 6]`; none for the empty label of padding."""

    def rows() -> tf.Tensor:
        return tf.io.parse_tensor(tf.io.decode_base64(label), tf.float32)

    empty = tf.zeros((0, len(COLUMNS)))
    return tf.ensure_shape(tf.cond(label == "", lambda: empty, rows), (None, len(COLUMNS)))


def box_arrays(
    images: np.ndarray,
    boxes: Sequence[np.ndarray],
    classes: Sequence[np.ndarray],
    num_classes: int,
) -> ArraySplit:
    """Returns a split of images in memory and their boxes.

    Args:
        images: uint8 `[n, height, width, channels]`.
        boxes: of each image `[objects, 4]`, y_min, x_min, y_max, x_max as shares of its height
            and width; an image may have none.
        classes: of each image ints `[objects]`.
        num_classes: how many there are.

    Raises:
        ValueError: if the numbers of images, boxes and classes differ, a box is empty or lies
            outside its image, or a class is unknown; names the image.

    Example:
        >>> images = np.zeros((2, 8, 8, 3), np.uint8)
        >>> split = box_arrays(images, [[[0, 0, 0.5, 1]], []], [[4], []], num_classes=5)
        >>> [len(rows) for rows in read_boxes(split)]
        [1, 0]
    """
    if not len(images) == len(boxes) == len(classes):
        raise ValueError(
            f"boxes: those of {len(boxes)} images, and classes of {len(classes)}, for "
            f"{len(images)} images."
        )
    labels = np.empty(len(images), object)
    for place, (own, kinds) in enumerate(zip(boxes, classes, strict=True)):
        own = np.asarray(own, np.float32).reshape(-1, 4)
        kinds = np.asarray(kinds, np.float32).reshape(-1, 1)
        _check(place, own, kinds, num_classes)
        rows = np.concatenate([own, kinds, np.zeros_like(kinds)], axis=1)
        labels[place] = pack(rows).numpy().decode("ascii")
    return ArraySplit(len(images), images, labels)


def _check(place: int, boxes: np.ndarray, classes: np.ndarray, num_classes: int) -> None:
    if len(boxes) != len(classes):
        raise ValueError(f"classes[{place}]: {len(classes)} for {len(boxes)} boxes.")
    inside = (boxes >= 0).all(axis=1) & (boxes <= 1).all(axis=1)
    right = inside & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    for box in boxes[~right]:
        raise ValueError(
            f"boxes[{place}] holds {box.tolist()}: expected 0 <= y_min < y_max <= 1 and 0 <= x_min "
            "< x_max <= 1, shares of the image; divide pixels by its height and width, and clip."
        )
    known = (classes >= 0) & (classes < num_classes) & (classes == np.floor(classes))
    for one in classes[~known]:
        raise ValueError(
            f"classes[{place}] holds {one:g}: expected whole numbers from 0 to {num_classes - 1}."
        )


def read_boxes(split: Split) -> Iterator[np.ndarray]:
    """Yields the rows of each image, float32 `[boxes, 6]`, in the order of evaluation.

    Those of arrays are known; a stream is read once, and nothing of it is decoded.

    Args:
        split: a split of boxes.

    Raises:
        ValueError: if it is one of labelled images.

    Example:
        >>> split = box_arrays(np.zeros((1, 8, 8, 1), np.uint8), [[[0, 0, 0.5, 1]]], [[1]], 2)
        >>> [rows.tolist() for rows in read_boxes(split)]
        [[[0.0, 0.0, 0.5, 1.0, 1.0, 0.0]]]
    """
    require_boxes(split)
    if not isinstance(split, StreamSplit):
        labels = tf.data.Dataset.from_tensor_slices(split.labels)
    else:
        examples, _ = order.evaluation(split, order.Schedule(batch_size=1))
        labels = examples.map(lambda example: example["label"])
    yield from labels.map(tf.autograph.experimental.do_not_convert(unpack)).as_numpy_iterator()


def require_boxes(split: Split) -> None:
    """Raises a `ValueError` if a split has no boxes."""
    if isinstance(split, StreamSplit):
        packed = split.open(tf.constant(0, tf.int64)).element_spec["label"].dtype == tf.string
    else:
        packed = np.asarray(split.labels).dtype == object
    if not packed:
        raise ValueError(
            "split: its images have class ids, not boxes; load_boxes loads sets that have."
        )
