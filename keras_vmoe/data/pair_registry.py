"""The one place that turns the name of a dataset into images and captions."""

import dataclasses
from collections.abc import Sequence

from keras_vmoe.data import registry, scenes
from keras_vmoe.data.caption_folder import load_caption_folder
from keras_vmoe.data.labelled_pairs import DEFAULT_TEMPLATES, with_captions
from keras_vmoe.data.pair_catalog import load_pair_catalog
from keras_vmoe.data.pairs import PairSource

_SCENES = ("digit_grids", "garment_grids")
_FOLDER_PREFIX, _LABELLED_PREFIX = "caption_folder:", "labelled:"


def list_pairs() -> tuple[str, ...]:
    """Returns the names that `load_pairs` knows besides those of TensorFlow Datasets."""
    return (*_SCENES, "caption_folder:PATH", "labelled:NAME")


def load_pairs(
    name: str,
    data_dir: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    image_field: str = "image",
    caption_field: str | None = None,
    templates: Sequence[str] | None = None,
    max_corrupt: int = 0,
    verify: bool = True,
) -> PairSource:
    """Loads a dataset of images and captions by name.

    Args:
        name: "digit_grids" (scenes of scikit-learn's scans, no network needed), "garment_grids"
            (scenes of Fashion-MNIST), "caption_folder:PATH" (a folder of images with captions.tsv,
            .csv or .jsonl), "labelled:NAME" (any set of `load`, captions made of class names), or a
            name of TensorFlow Datasets. Of those, 4.9.10 has coco_captions, laion400m, wit_kaggle
            and ai2dcaption; it has neither Flickr30k nor Conceptual Captions, which are read as a
            caption folder, or from a `data_dir` where they have been prepared.
        data_dir: for "garment_grids" a folder of Fashion-MNIST's four idx `.gz` files, Debian's
            place for them by default; for "labelled:NAME" and TensorFlow Datasets as `load` takes
            it; not for others.
        train_split: name of the split to train on; TensorFlow Datasets take any specification.
        eval_split: name of the held-out split, by default the first of "validation", "val" and
            "test" that exists.
        image_field: for TensorFlow Datasets: the feature of the image.
        caption_field: for TensorFlow Datasets: the feature of the captions, such as
            "captions/text"; by default "captions/text", "caption", "captions" or "text".
        templates: for "labelled:NAME", by default ("a photo of a {}.",); several are several
            captions.
        max_corrupt: how many images that cannot be decoded, or of TensorFlow Datasets have no
            caption, may be left out; not for scenes.
        verify: for folders: decode every file once now.

    Returns:
        The source: shape of the images, and splits with captions.

    Raises:
        ImportError: if a library that the dataset needs is not installed.
        OSError: if files are missing or cannot be fetched.
        ValueError: if the name is unknown, an argument is of other datasets, files are damaged, or
            a caption is empty.

    Example:
        >>> source = load_pairs("digit_grids")
        >>> source.image_shape, source.train.num_examples, source.eval.num_examples
        ((32, 32, 1), 20000, 1000)
    """
    _check(name, image_field, caption_field, templates)
    _check_place(name, data_dir, max_corrupt)
    if name.startswith(_LABELLED_PREFIX):
        source = registry.load(
            name.removeprefix(_LABELLED_PREFIX),
            data_dir,
            train_split,
            eval_split,
            verify=verify,
            max_corrupt=max_corrupt,
        )
        return with_captions(source, DEFAULT_TEMPLATES if templates is None else templates)
    if name.startswith(_FOLDER_PREFIX):
        folder = name.removeprefix(_FOLDER_PREFIX)
        return load_caption_folder(folder, train_split, eval_split, verify, max_corrupt)
    if name in _SCENES:
        return _load_scenes(name, data_dir, train_split, eval_split)
    return load_pair_catalog(
        name, data_dir, train_split, eval_split, image_field, caption_field, max_corrupt
    )


def _check(
    name: str, image_field: str, caption_field: str | None, templates: Sequence[str] | None
) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r}: expected the name of a dataset, such as 'digit_grids'.")
    for prefix, what in ((_FOLDER_PREFIX, "folder"), (_LABELLED_PREFIX, "name")):
        if name == prefix:
            raise ValueError(f"name={name!r} lacks the {what}: write '{prefix}{what.upper()}'.")
    is_labelled = name.startswith(_LABELLED_PREFIX)
    if templates is not None and not is_labelled:
        raise ValueError(f"templates={templates!r}: dataset {name!r} has captions of its own.")
    if not (is_labelled or name.startswith(_FOLDER_PREFIX) or name in _SCENES):
        return
    for argument, value in (("image_field", image_field), ("caption_field", caption_field)):
        if value not in (None, "image"):
            raise ValueError(
                f"{argument}={value!r}: dataset {name!r} is none of TensorFlow Datasets, which "
                "have fields."
            )


def _check_place(name: str, data_dir: str | None, max_corrupt: int) -> None:
    if data_dir is not None and (name == "digit_grids" or name.startswith(_FOLDER_PREFIX)):
        raise ValueError(
            f"data_dir={data_dir!r}: dataset {name!r} does not lie there"
            + (", the folder is in its name." if name.startswith(_FOLDER_PREFIX) else ".")
        )
    if max_corrupt and name in _SCENES:
        raise ValueError(
            f"max_corrupt={max_corrupt!r}: dataset {name!r} is composed in memory, nothing of it "
            "can be damaged."
        )


def _load_scenes(
    name: str, data_dir: str | None, train_split: str | None, eval_split: str | None
) -> PairSource:
    if name == "digit_grids":
        source = scenes.load_digit_grids()
    else:
        source = scenes.load_garment_grids(data_dir)
    return dataclasses.replace(
        source,
        train_split=train_split or source.train_split,
        eval_split=eval_split or source.eval_split,
    )
