"""From the bytes of an image to a square of pixels, still in bytes where that is possible."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from keras_vmoe.data.augmentation import Augmentation, augment_all
from keras_vmoe.data.corrupt import CorruptImages, decode
from keras_vmoe.data.crops import Crop, InceptionCrop
from keras_vmoe.data.folder import CHANNELS
from keras_vmoe.data.order import Example
from keras_vmoe.data.source import ArraySplit, FileSplit, Split, StreamSplit

# A share of the machine's memory that encoded images may take.
_MEMORY_SHARE = 0.8
# Images that are read into memory at a time.
_CHUNK = 1024


class Reader:
    """Makes one image of one example: reads, decodes, crops and augments it.

    Args:
        split: where the examples are from.
        image_size: side of the result in pixels.
        crop: how a square is made of an image; None squashes it.
        augmentations: what is done to the square.
        cache: hold the bytes of files in memory; all are read now.

    Raises:
        ValueError: if the files do not fit into memory.
    """

    def __init__(
        self,
        split: Split,
        image_size: int,
        crop: Crop | None,
        augmentations: Sequence[Augmentation] = (),
        cache: bool = False,
    ):
        self._split, self._image_size = split, image_size
        self._crop, self._augmentations = crop, augmentations
        self._corrupt: CorruptImages | None = getattr(split, "corrupt", None)
        self._channels = channels(split)
        with tf.device("CPU:0"):
            if not isinstance(split, StreamSplit):
                self._labels = tf.constant(split.labels)
            if isinstance(split, FileSplit):
                self._paths = tf.constant(split.paths)
                self._contents = _read_all(split) if cache else None
            if isinstance(split, ArraySplit):
                self._arrays = tf.constant(split.images)

    def __call__(self, example: Example) -> Example:
        """Reads one example.

        Args:
            example: of `order`.

        Returns:
            `{"image": [s, s, channels], "label": int32, a string of pairs}`, uint8 or, where it was
            squashed, float32; and `"whole"`, bool, where damaged images may be left out.
        """
        draws = example.get("draws", tf.zeros((0,)))
        num_crop_draws = self._crop.num_draws if self._crop else 0
        crop_draws, draws = draws[:num_crop_draws], draws[num_crop_draws:]
        if isinstance(self._split, ArraySplit) or self._corrupt is not None:
            found = self.whole(example)
            image = self._square(found["image"], crop_draws)
        else:
            found = {"label": self._label(example)}
            content, _ = self.content(example)
            image = self._decode_and_crop(content, crop_draws)
        if self._augmentations:
            image = augment_all(self._augmentations, image[None], draws[None])[0]
        return found | {"image": image}

    def whole(self, example: Example) -> Example:
        """Reads one example, and leaves the image as it is.

        Args:
            example: of `order`.

        Returns:
            As a call, with an image of any size.
        """
        found = {"label": self._label(example)}
        if isinstance(self._split, ArraySplit):
            return found | {"image": self._arrays[example["index"]]}
        content, place = self.content(example)
        if self._corrupt is None:
            return found | {"image": decode(content, self._channels)}
        image, found["whole"] = self._corrupt.decode(content, self._channels, place)
        return found | {"image": image}

    def _label(self, example: Example) -> tf.Tensor:
        if not isinstance(self._split, StreamSplit):
            return self._labels[example["index"]]
        label = example["label"]
        return label if label.dtype == tf.string else tf.cast(label, tf.int32)

    def content(self, example: Example) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the bytes of an image that is not held decoded, and what messages call it."""
        if isinstance(self._split, StreamSplit):
            position = tf.strings.as_string(example["position"])
            return example["image"], tf.strings.join(["image ", position, " of ", self._split.name])
        path = self._paths[example["index"]]
        if self._contents is not None:
            return self._contents[example["index"]], path
        return tf.io.read_file(path), path

    def _square(self, image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        size = self._image_size
        if self._crop is not None:
            return self._crop(image, size, draws)
        if image.shape[:2] == (size, size):
            return image
        return tf.image.resize(image, (size, size))

    def _decode_and_crop(self, content: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Decodes no more of a JPEG than what the crop keeps.

        That changes nothing but, where colour is stored at half the resolution, the window's
        outermost pixels a little.
        """
        crop = self._crop
        if not isinstance(crop, InceptionCrop):
            return self._square(decode(content, self._channels), draws)

        def of_jpeg() -> tf.Tensor:
            height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(content))
            window = crop.window(height, width, draws)
            return tf.image.decode_and_crop_jpeg(content, window, channels=self._channels)

        def of_others() -> tf.Tensor:
            return crop.cut(decode(content, self._channels), draws)

        part = tf.cond(tf.io.is_jpeg(content), of_jpeg, of_others)
        return crop.resize(part, self._image_size)


def channels(split: FileSplit | StreamSplit) -> int:
    """Returns the number of channels that the images are decoded to."""
    return split.channels if isinstance(split, StreamSplit) else CHANNELS


def hold_in_memory(mine: StreamSplit) -> StreamSplit:
    """Reads the bytes of all images of a stream, or of what one host reads of it.

    Returns:
        The same examples, from memory.

    Raises:
        ValueError: if the images do not fit into memory.
    """
    begins = np.cumsum((0, *mine.sizes), dtype=np.int64)
    parts = [mine.open(tf.constant(part, tf.int64)) for part in range(len(mine.sizes))]
    labels = []

    def images() -> Iterator[tf.Tensor]:
        for part in parts:
            for batch in part.batch(_CHUNK):
                labels.append(batch["label"])
                yield batch["image"]

    contents = _hold(images(), mine.num_examples, mine.name)
    with tf.device("CPU:0"):
        label = tf.concat(labels, 0)

    def open_held(part: tf.Tensor) -> tf.data.Dataset:
        bounds = tf.constant(begins)
        numbers = tf.data.Dataset.range(bounds[part], bounds[part + 1])
        return numbers.map(lambda i: {"image": tf.gather(contents, i), "label": label[i]})

    return dataclasses.replace(mine, open=open_held)


def _read_all(split: FileSplit) -> tf.Variable:
    _check_memory(sum(os.stat(path).st_size for path in split.paths), "the files")
    paths = tf.data.Dataset.from_tensor_slices(list(split.paths))
    contents = paths.map(tf.io.read_file, num_parallel_calls=tf.data.AUTOTUNE)
    return _hold(iter(contents.batch(_CHUNK)), len(split.paths), "the files")


def _hold(batches: Iterator[tf.Tensor], count: int, of: str) -> tf.Variable:
    """Returns the strings `[count]` of all batches; a variable, so that none is held twice."""
    size = begin = 0
    with tf.device("CPU:0"):
        held = tf.Variable(tf.fill((count,), ""), trainable=False)
        for batch in batches:
            size += int(tf.reduce_sum(tf.strings.length(batch)))
            _check_memory(size, of)
            places = tf.range(begin, begin + len(batch))
            held.scatter_update(tf.IndexedSlices(batch, places))
            begin += len(batch)
    return held


def _check_memory(size: int, of: str) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > _MEMORY_SHARE * memory:
        raise ValueError(
            f"cache=True: the encoded images of {of} take {size / 1e9:.1f} GB and more, this "
            f"machine has {memory / 1e9:.1f} GB of memory: leave cache out."
        )


def keep_whole(batch: Example) -> Example:
    """Puts whole images in the place of damaged ones: the next of the batch, or its first ones.

    Args:
        batch: `{"image", "label", "whole"}`, as training takes it.

    Returns:
        The batch without `"whole"`.
    """
    whole = batch.pop("whole")
    with tf.control_dependencies(
        [tf.debugging.assert_equal(tf.reduce_any(whole), True, "no image of a batch is whole")]
    ):
        places = tf.where(whole)[:, 0]
    # For each entry the number of the first whole one at or after it, around the end.
    before = tf.cumsum(tf.cast(whole, tf.int32), exclusive=True)
    chosen = tf.gather(places, before % tf.size(places))
    return {name: tf.gather(value, chosen) for name, value in batch.items()}


def leave_out(batch: Example) -> Example:
    """Leaves damaged images out of a batch of evaluation: by its mask, if it has one.

    Args:
        batch: `{"image", "label", "whole"}`, and `"mask"` where batches are padded.

    Returns:
        The batch without `"whole"`.
    """
    whole = batch.pop("whole")
    if "mask" in batch:
        return batch | {"mask": batch["mask"] & whole}
    return {name: tf.boolean_mask(value, whole) for name, value in batch.items()}
