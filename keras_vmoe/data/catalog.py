"""Datasets of TensorFlow Datasets."""

import difflib
import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vmoe.data.source import MEMORY_LIMIT, ArraySplit, ImageSource, Split, StreamSplit

_EVAL_NAMES = ("validation", "val", "test")


def load_catalog(
    name: str,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
) -> ImageSource:
    """Loads an image classification dataset of TensorFlow Datasets, fetching it where needed.

    Equally sized images of up to 512 MiB a split are held in memory; others are streamed.

    Args:
        name: a name of the catalogue, with configuration and version where wanted, such as
            "cifar10" or "cifar10:3.0.2".
        data_dir: where prepared datasets lie, TensorFlow Datasets' own default if None.
        train_split: split to train on, for instance "train[:90%]"; "train" by default.
        eval_split: held-out split; by default the first of "validation", "val", "test".

    Returns:
        A source with these two splits.

    Raises:
        ImportError: if TensorFlow Datasets is not installed.
        OSError: if the dataset cannot be fetched or prepared.
        ValueError: if there is no such dataset or split, or it has no class labels.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"dataset {name!r} needs TensorFlow Datasets: pip install 'keras_vmoe[train]'."
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise ValueError(_unknown(name, known)) from None
    except (AssertionError, ValueError) as error:  # a wrong configuration or version
        raise ValueError(f"dataset {name!r}: {_first_line(error)}") from error
    image, label = _features(builder, tfds)
    try:
        builder.download_and_prepare()
    except Exception as error:  # each dataset's own code may raise anything here
        raise OSError(
            f"dataset {name!r} could not be prepared in {builder.data_dir}: {_first_line(error)}"
        ) from error
    train_split = train_split or "train"
    eval_split = eval_split or _default_eval_split(builder)
    splits = {split: _read_split(builder, split, tfds) for split in (train_split, eval_split)}
    return ImageSource(name, tuple(label.names), image.shape, splits, train_split, eval_split)


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, ["digits", "fashion_mnist", "image_folder", *known], 3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"dataset {name!r} is not known: use 'digits', 'fashion_mnist', 'image_folder:PATH' or "
        f"one of the {len(known)} names of TensorFlow Datasets.{hint}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _features(builder: Any, tfds: Any) -> tuple[Any, Any]:
    """Returns the image and the label feature, or says why the dataset is of no use here."""
    features = dict(builder.info.features or {})
    image, label = features.get("image"), features.get("label")
    found = isinstance(image, tfds.features.Image), isinstance(label, tfds.features.ClassLabel)
    if not all(found):
        raise ValueError(
            f"dataset {builder.name!r} is not for image classification: it needs features 'image' "
            f"and 'label', it has {', '.join(features)}."
        )
    if image.np_dtype != np.uint8:
        raise ValueError(f"dataset {builder.name!r} has images of {image.np_dtype}, not of uint8.")
    return image, label


def _default_eval_split(builder: Any) -> str:
    known = list(builder.info.splits)
    # Splits are unknown before a dataset is prepared, and stay so where tests mock it.
    held_out = [name for name in _EVAL_NAMES if name in known or not known]
    if not held_out:
        raise ValueError(
            f"dataset {builder.name!r} has no held-out split, only {', '.join(known)}: "
            f"give train_split='train[:80%]' and eval_split='train[80%:]'."
        )
    return held_out[0] if known else "test"


def _read_split(builder: Any, name: str, tfds: Any) -> Split:
    image = builder.info.features["image"]

    def open_encoded() -> tf.data.Dataset:
        skip = {"image": tfds.decode.SkipDecoding()}
        dataset = builder.as_dataset(split=name, decoders=skip, shuffle_files=False)
        return dataset.map(lambda x: {"image": x["image"], "label": x["label"]})

    try:
        num_examples = int(open_encoded().cardinality())
    except ValueError as error:
        raise ValueError(
            f"dataset {builder.name!r}, split {name!r}: {_first_line(error)}"
        ) from error
    if num_examples < 0:
        num_examples = builder.info.splits[name].num_examples
    if None in image.shape or num_examples * math.prod(image.shape) > MEMORY_LIMIT:
        return StreamSplit(num_examples, open_encoded, image.shape[-1])
    keep = tfds.decode.PartialDecoding({"image": True, "label": True})
    decoded = builder.as_dataset(split=name, decoders=keep, shuffle_files=False)
    examples = list(decoded.batch(1024).as_numpy_iterator())
    images = np.concatenate([example["image"] for example in examples])
    return ArraySplit.of(images, np.concatenate([example["label"] for example in examples]))
