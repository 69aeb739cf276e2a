"""Datasets of TensorFlow Datasets."""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vmoe.data.corrupt import CorruptImages, decode, one_line
from keras_vmoe.data.source import (
    MEMORY_LIMIT,
    ArraySplit,
    ImageSource,
    OpenPart,
    Split,
    StreamSplit,
)

# Short names for what the papers call so.
ALIASES = {"pets": "oxford_iiit_pet", "flowers": "oxford_flowers102"}
_EVAL_NAMES = ("validation", "val", "test")
_PREPARED = "dataset_info.json"

Example = dict[str, Any]


@dataclass(frozen=True)
class Fields:
    """What is read of each example.

    Args:
        image: the feature of the image.
        label: the feature of the label; "captions/text" is one within another.
        to_label: makes a label of that feature.
        finish: changes the example in the end.
    """

    image: str = "image"
    label: str = "label"
    to_label: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    finish: Callable[[Example], Example] = dict

    def decoders(self, tfds: Any) -> Any:
        """Returns what leaves out all else, and images encoded."""
        skipping = {self.image: tfds.decode.SkipDecoding()}
        return tfds.decode.PartialDecoding(
            {self.image: True} | _nested(self.label, True), decoders=skipping
        )

    def read(self, example: Example) -> Example:
        """Returns `{"image", "label"}` of an example."""
        label = self.to_label(find_feature(example, self.label))
        return self.finish({"image": example[self.image], "label": label})


def find_feature(features: Any, path: str) -> Any:
    """Returns a feature, or one within another, or None.

    Example:
        >>> find_feature({"captions": {"text": 1}}, "captions/text")
        1
    """
    for name in [path] if path in features else path.split("/"):
        if not isinstance(features, dict) or name not in features:
            return None
        features = features[name]
    return features


def _nested(path: str, value: Any) -> Example:
    for name in reversed(path.split("/")):
        value = {name: value}
    return value


def load_catalog(
    name: str,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    max_corrupt: int = 0,
) -> ImageSource:
    """Loads an image classification dataset of TensorFlow Datasets, fetching it where needed.

    Equally sized images of up to 512 MiB a split are held in memory; others are streamed.
    Datasets that the catalogue lacks, imagenet21k for instance, are read where they have been
    prepared in its format (`tfds.dataset_builders.store_as_tfds_dataset` does so).

    Args:
        name: a name of the catalogue, with configuration and version where wanted, such as
            "cifar10" or "cifar10:3.0.2"; "pets" and "flowers" for oxford_iiit_pet and
            oxford_flowers102; or the name of a dataset that lies prepared in `data_dir`.
        data_dir: where prepared datasets lie, TensorFlow Datasets' own default if None; or the
            folder of one prepared dataset, which holds its dataset_info.json.
        train_split: split to train on, for instance "train[:90%]"; "train" by default.
        eval_split: held-out split; by default the first of "validation", "val", "test".
        max_corrupt: up to this many images that cannot be decoded are left out.

    Returns:
        A source with these two splits.

    Raises:
        ImportError: if TensorFlow Datasets is not installed.
        OSError: if the dataset cannot be fetched or prepared.
        ValueError: if there is no such dataset or split, it has no class labels, or more images
            that are held in memory cannot be decoded than may be.
    """
    corrupt = CorruptImages(max_corrupt)
    builder = find_builder(name, data_dir, _unknown)
    image, label = _features(builder)
    prepare(builder)
    train_split = train_split or "train"
    eval_split = eval_split or default_eval_split(builder)
    splits = {
        split: read_split(builder, split, Fields(), corrupt) for split in (train_split, eval_split)
    }
    names = tuple(label.names)
    return ImageSource(name, names, image.shape, splits, train_split, eval_split, corrupt)


def find_builder(
    name: str, data_dir: str | None, unknown: Callable[[str, str | None, list[str]], str]
) -> Any:
    """Returns the builder of a dataset, prepared or not.

    Args:
        name: of the catalogue, or of what lies prepared in `data_dir`.
        data_dir: as `load_catalog` takes it.
        unknown: makes a message of a name that is not known, `data_dir` and the known names.

    Raises:
        ImportError: if TensorFlow Datasets is not installed.
        ValueError: if there is no such dataset.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"dataset {name!r} needs TensorFlow Datasets: pip install 'keras_vmoe[train]'."
        ) from error
    full_name = ALIASES.get(name, name)
    folder = os.path.expanduser(data_dir or "")
    # Such a folder may lie in a bucket too.
    if data_dir and tf.io.gfile.exists(os.path.join(folder, _PREPARED)):
        builder = tfds.builder_from_directory(folder)
        if builder.name != re.split("[:/]", full_name)[0]:
            raise ValueError(f"data_dir={data_dir!r} holds {builder.name!r}, not {name!r}.")
        return builder
    try:
        return tfds.builder(full_name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise ValueError(unknown(name, data_dir, known)) from None
    except (AssertionError, ValueError) as error:  # a wrong configuration or version
        raise ValueError(f"dataset {name!r}: {_first_line(error)}") from error


def prepare(builder: Any) -> None:
    """Fetches and prepares a dataset, where it is not.

    Raises:
        OSError: if that cannot be done.
    """
    try:
        builder.download_and_prepare()
    except Exception as error:  # each dataset's own code may raise anything here
        raise OSError(
            f"dataset {builder.name!r} could not be prepared in {builder.data_dir}: "
            f"{_first_line(error)}"
        ) from error


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns a sentence that names the nearest of the names, if any is near; else nothing."""
    near = difflib.get_close_matches(name, names, 3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _unknown(name: str, data_dir: str | None, known: list[str]) -> str:
    if re.split("[:/]", name)[0] == "imagenet21k":
        where = f"{data_dir} holds none" if data_dir else "data_dir does not say where it lies"
        return (
            f"dataset {name!r} is not in the catalogue of TensorFlow Datasets, and {where}: give a "
            "data_dir where it has been prepared (tfds.dataset_builders.store_as_tfds_dataset "
            "does so), or unpack it to one folder per class and use 'image_folder:PATH'."
        )
    ours = ["digits", "digit_pairs", "fashion_mnist", "garment_digits", "image_folder"]
    names = [*ours, *ALIASES, *known]
    hint = did_you_mean(name, names)
    return (
        f"dataset {name!r} is not known: use 'digits', 'fashion_mnist', 'image_folder:PATH', one "
        f"of the {len(known)} names of TensorFlow Datasets, or a data_dir where it has been "
        f"prepared.{hint}"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # What the first line announces.
    return " ".join(lines[:3]) if lines[0].endswith(":") else lines[0]


def _features(builder: Any) -> tuple[Any, Any]:
    """Returns the image and the label feature, or says why the dataset is of no use here."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features or {})
    image, label = features.get("image"), features.get("label")
    found = isinstance(image, tfds.features.Image), isinstance(label, tfds.features.ClassLabel)
    if not all(found):
        raise ValueError(
            f"dataset {builder.name!r} is not for image classification: it needs features 'image' "
            f"and 'label', it has {', '.join(features)}."
        )
    check_image(builder, image)
    return image, label


def check_image(builder: Any, image: Any) -> None:
    """Raises ValueError if the image feature is not of bytes."""
    if image.np_dtype != np.uint8:
        raise ValueError(f"dataset {builder.name!r} has images of {image.np_dtype}, not of uint8.")


def default_eval_split(builder: Any) -> str:
    """Returns the first of the usual held-out splits that there is.

    Raises:
        ValueError: if there is none.
    """
    known = list(builder.info.splits)
    # Splits are unknown before a dataset is prepared, and stay so where tests mock it.
    held_out = [name for name in _EVAL_NAMES if name in known or not known]
    if not held_out:
        raise ValueError(
            f"dataset {builder.name!r} has no held-out split, only {', '.join(known)}: "
            f"give train_split='train[:80%]' and eval_split='train[80%:]'."
        )
    return held_out[0] if known else "test"


def read_split(builder: Any, name: str, fields: Fields, corrupt: CorruptImages) -> Split:
    """Returns one split of a prepared dataset, in memory where it is small.

    Args:
        builder: of the dataset.
        name: of the split, or a specification such as "train[:90%]".
        fields: what is read of each example.
        corrupt: counts the images that cannot be decoded.

    Raises:
        ValueError: if there is no such split, or more images cannot be decoded than may be.
    """
    import tensorflow_datasets as tfds

    image = builder.info.features[fields.image]
    decoders = fields.decoders(tfds)

    def open_whole(part: tf.Tensor | None = None) -> tf.data.Dataset:
        examples = builder.as_dataset(split=name, decoders=decoders, shuffle_files=False)
        return examples.map(fields.read)

    try:
        num_examples = int(open_whole().cardinality())
    except ValueError as error:
        raise ValueError(
            f"dataset {builder.name!r}, split {name!r}: {_first_line(error)}"
        ) from error
    if num_examples < 0:
        num_examples = builder.info.splits[name].num_examples
    place = f"{builder.name} {name}"
    if None in image.shape or num_examples * math.prod(image.shape) > MEMORY_LIMIT:
        sizes, open_part = _files(builder, name, fields) or (None, open_whole)
        return StreamSplit(
            num_examples,
            open_part,
            image.shape[-1],
            corrupt=corrupt if corrupt.limit else None,
            name=place,
            part_sizes=sizes,
        )
    return _decode_all(open_whole(), image.shape[-1], place, corrupt)


def _files(builder: Any, name: str, fields: Fields) -> tuple[tuple[int, ...], OpenPart] | None:
    """Returns the sizes of a split's files and what opens one, where they can be read one by one.

    Where not, in other formats for instance, hosts cannot have files of their own, and every epoch
    reads the files in the same order.
    """
    import tensorflow_datasets as tfds

    known = list(builder.info.splits)  # not where tests mock a dataset
    if not known or builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        return None
    files = builder.info.splits[name].file_instructions
    paths, skips, takes = (
        np.array([getattr(file, field) for file in files]) for field in ("filename", "skip", "take")
    )
    decoders = fields.decoders(tfds)
    features = decoders.extract_features(builder.info.features)

    def decode_example(record: tf.Tensor) -> Example:
        return fields.read(features.deserialize_example(record, decoders=decoders.decoders))

    def open_part(part: tf.Tensor) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(tf.constant(paths)[part])
        return (
            records.skip(tf.constant(skips)[part])
            .take(tf.constant(takes)[part])
            .map(decode_example)
        )

    return tuple(int(count) for count in takes), open_part


def _decode_all(
    encoded: tf.data.Dataset, channels: int, place: str, corrupt: CorruptImages
) -> ArraySplit:
    def read(position: tf.Tensor, example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        if not corrupt.limit:
            return decode(example["image"], channels), example["label"], True
        where = tf.strings.join(["image ", tf.strings.as_string(position), " of ", place])
        image, is_whole = corrupt.decode(example["image"], channels, where)
        return image, example["label"], is_whole

    examples = encoded.enumerate().map(read, num_parallel_calls=tf.data.AUTOTUNE)
    examples = examples.filter(lambda image, label, is_whole: is_whole)
    try:
        batches = list(examples.batch(1024).as_numpy_iterator())
    except tf.errors.OpError as error:
        corrupt.check()
        raise ValueError(f"{place}: an image cannot be decoded: {one_line(error)}") from error
    images, labels = (np.concatenate([batch[i] for batch in batches]) for i in range(2))
    if labels.dtype == object:
        texts = np.array([label.decode("utf-8", "replace") for label in labels], object)
        return ArraySplit(len(images), images, texts)
    return ArraySplit.of(images, labels)
