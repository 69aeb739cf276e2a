"""The one place that turns the name of a dataset into images and labels."""

import dataclasses
from pathlib import Path

from keras_vmoe.data import catalog, digits, folder, idx, tagged
from keras_vmoe.data.source import ImageSource

_FOLDER_PREFIX = "image_folder:"


def list_datasets() -> tuple[str, ...]:
    """Returns the names that `load` knows besides those of TensorFlow Datasets."""
    return ("digits", "digit_pairs", "fashion_mnist", "garment_digits", "image_folder:PATH")


def load(
    name: str,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    verify: bool = True,
    max_corrupt: int = 0,
) -> ImageSource:
    """Loads a labelled image dataset by name.

    Args:
        name: "digits" (scikit-learn's 1,797 scans, no network needed), "digit_pairs" (100 classes
            of pictures with two of these scans), "fashion_mnist", "garment_digits" (100 classes,
            a garment of Fashion-MNIST with one of the digits), "image_folder:PATH" or any name of
            TensorFlow Datasets, also "pets" and "flowers".
        data_dir: for "fashion_mnist" and "garment_digits" a folder of Fashion-MNIST's four idx
            `.gz` files, Debian's place for them by default; otherwise the folder of TensorFlow
            Datasets, or the folder of one prepared dataset, which the catalogue need not know:
            imagenet21k for instance.
        train_split: name of the split to train on. TensorFlow Datasets take any split
            specification, for instance "train[:90%]".
        eval_split: name of the held-out split, by default the first of "validation", "val" and
            "test" that exists.
        verify: for image folders: decode every file once now, so that a damaged one is found
            before training starts.
        max_corrupt: how many images that cannot be decoded may be left out, for image folders and
            for what TensorFlow Datasets stream; the source counts them (`skipped`). One more is
            an error.

    Returns:
        The source: names of the classes, shape of the images, and splits.

    Raises:
        ImportError: if a library that the dataset needs is not installed.
        OSError: if files are missing or cannot be fetched.
        ValueError: if the name is unknown, or the files are damaged or not what they should be.

    Example:
        >>> source = load("digits")
        >>> source.num_classes, source.image_shape, source.train.num_examples
        (10, (8, 8, 1), 1437)
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r}: expected the name of a dataset, such as 'digits'.")
    if name.startswith(_FOLDER_PREFIX):
        path = name.removeprefix(_FOLDER_PREFIX)
        if not path:
            raise ValueError(f"name={name!r} lacks the folder: write 'image_folder:PATH'.")
        return folder.load_folder(path, train_split, eval_split, verify, max_corrupt)
    local = None
    if name == "digits":
        local = digits.load_digits()
    elif name == "fashion_mnist":
        local = _local_fashion_mnist(data_dir)
    elif name == "digit_pairs":
        local = tagged.load_digit_pairs()
    elif name == "garment_digits":
        local = tagged.load_garment_digits(load("fashion_mnist", data_dir))
    if local is None:
        return catalog.load_catalog(name, data_dir, train_split, eval_split, max_corrupt)
    return dataclasses.replace(
        local,
        train_split=train_split or local.train_split,
        eval_split=eval_split or local.eval_split,
    )


def _local_fashion_mnist(data_dir: str | None) -> ImageSource | None:
    """Returns the dataset from idx files, or None where TensorFlow Datasets should be asked."""
    if data_dir is None:
        is_installed = all((idx.DEBIAN_FOLDER / name).is_file() for name in idx.file_names())
        return idx.load_idx_folder(idx.DEBIAN_FOLDER) if is_installed else None
    path = Path(data_dir).expanduser()
    if (path / "fashion_mnist").is_dir():
        return None
    if not path.is_dir():
        raise FileNotFoundError(f"data_dir={data_dir!r}: there is no such folder.")
    return idx.load_idx_folder(path)
