"""The one place that turns the name of a dataset into images and boxes."""

import dataclasses

from keras_vmoe.data import box_scenes
from keras_vmoe.data.box_catalog import load_box_catalog
from keras_vmoe.data.boxes import BoxSource


def list_boxes() -> tuple[str, ...]:
    """Returns the names that `load_boxes` knows besides those of TensorFlow Datasets."""
    return ("digit_scenes", "garment_scenes")


def load_boxes(
    name: str,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    objects_field: str = "objects",
    max_boxes: int | None = None,
    max_corrupt: int = 0,
) -> BoxSource:
    """Loads a dataset of images with boxes by name.

    Args:
        name: "digit_scenes" (scenes of scikit-learn's scans, no network needed), "garment_scenes"
            (scenes of Fashion-MNIST), or a name of TensorFlow Datasets, such as "coco/2017".
        data_dir: for "garment_scenes" a folder of Fashion-MNIST's four idx `.gz` files, Debian's
            place for them by default; for TensorFlow Datasets the folder of prepared datasets, or
            of one.
        train_split: name of the split to train on; TensorFlow Datasets take any specification.
        eval_split: name of the held-out split, by default the first of "validation", "val" and
            "test" that exists.
        objects_field: for TensorFlow Datasets: the feature of the objects.
        max_boxes: places for boxes that each image of a batch has; None: 6 of scenes, which have
            no more, and 100 of others.
        max_corrupt: how many images that cannot be decoded may be left out; not for scenes.

    Returns:
        The source: names of the classes, shape of the images, and splits with boxes.

    Raises:
        ImportError: if a library that the dataset needs is not installed.
        OSError: if files are missing or cannot be fetched.
        ValueError: if the name is unknown, an argument is of other datasets, or files are damaged.

    Example:
        >>> source = load_boxes("digit_scenes")
        >>> source.image_shape, source.train.num_examples, source.eval.num_examples
        ((96, 96, 1), 4000, 500)
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r}: expected the name of a dataset, such as 'digit_scenes'.")
    if name not in list_boxes():
        places = 100 if max_boxes is None else max_boxes
        return load_box_catalog(
            name, data_dir, train_split, eval_split, objects_field, places, max_corrupt
        )
    for argument, value, default in (
        ("objects_field", objects_field, "objects"),
        ("max_corrupt", max_corrupt, 0),
        *([("data_dir", data_dir, None)] if name == "digit_scenes" else []),
    ):
        if value != default:
            raise ValueError(
                f"{argument}={value!r}: dataset {name!r} is composed in memory; leave it out."
            )
    if name == "digit_scenes":
        source = box_scenes.load_digit_scenes()
    else:
        source = box_scenes.load_garment_scenes(data_dir)
    return dataclasses.replace(
        source,
        train_split=train_split or source.train_split,
        eval_split=eval_split or source.eval_split,
        max_boxes=max_boxes or source.max_boxes,
    )
