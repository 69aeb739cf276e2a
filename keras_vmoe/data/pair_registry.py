"""The one place that turns the name of a dataset into images and captions."""

import dataclasses

from keras_vmoe.data import scenes
from keras_vmoe.data.pairs import PairSource


def list_pairs() -> tuple[str, ...]:
    """Returns the names that `load_pairs` knows besides those of TensorFlow Datasets."""
    return ("digit_grids", "garment_grids")


def load_pairs(
    name: str,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
) -> PairSource:
    """Loads a dataset of images and captions by name.

    Args:
        name: "digit_grids" (made of scikit-learn's scans, no network needed) or "garment_grids"
            (made of Fashion-MNIST).
        data_dir: for "garment_grids" a folder of Fashion-MNIST's four idx `.gz` files, Debian's
            place for them by default.
        train_split: name of the split to train on.
        eval_split: name of the held-out split.

    Returns:
        The source: shape of the images, and splits with captions.

    Raises:
        ImportError: if a library that the dataset needs is not installed.
        OSError: if files are missing.
        ValueError: if the name is unknown.

    Example:
        >>> source = load_pairs("digit_grids")
        >>> source.image_shape, source.train.num_examples, source.eval.num_examples
        ((32, 32, 1), 20000, 1000)
    """
    if name == "digit_grids":
        source = scenes.load_digit_grids()
    elif name == "garment_grids":
        source = scenes.load_garment_grids(data_dir)
    else:
        raise ValueError(f"dataset {name!r} is not known: use one of {', '.join(list_pairs())}.")
    return dataclasses.replace(
        source,
        train_split=train_split or source.train_split,
        eval_split=eval_split or source.eval_split,
    )
